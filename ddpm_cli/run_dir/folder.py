"""A run's folder: its files by name, its checkpoints rotated, its lock."""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.run_dir import checkpoint
from ddpm_cli.run_dir.find import step_of
from ddpm_cli.run_dir.hydra_record import write_record
from ddpm_cli.run_dir.log_file import LogFile
from ddpm_cli.system.files import remove, remove_stale, replacing, write_text
from ddpm_cli.system.lock import Busy, lock

log = logging.getLogger("ddpm_cli")


class RunDir:
    """Held by one process at a time; closing it (or dying) lets go of the lock.

    record: Hydra's files, written beside config.yaml once nothing is left that could be refused. (In a sweep Hydra has
    written them itself.)
    """

    def __init__(self, path: Path, record: Mapping[str, str], *, resumed: bool):
        self.path, self._record, self._resumed = path, record, resumed
        self.checkpoints, self.samples = path / "checkpoints", path / "samples"
        inside = ["train.log", "config.yaml", "result.json", ".lock", "checkpoints", "samples", ".hydra"]
        # What is not there yet, the innermost first: if the run is refused after all, just that goes away again.
        self._made = [p for p in (*(path / name for name in inside), path, *path.parents) if not p.exists()]
        if not resumed:
            _make(path)
        self._lock = _locked(path)  # open as long as this process uses the folder
        self.log = LogFile(path / "train.log")

    @classmethod
    def create(cls, path: Path, record: Mapping[str, str] = MappingProxyType({})) -> "RunDir":
        """A new run; UserError if the folder already holds one. One that made no checkpoint does not count."""
        run = cls(path, record, resumed=False)
        if any(run.checkpoints.glob("*.pt")):
            run.close()
            raise UserError(f"{path} already holds a run; go on with resume={path}, or choose another run_dir")
        run._prepare()
        return run

    @classmethod
    def open(cls, path: Path, record: Mapping[str, str] = MappingProxyType({})) -> "RunDir":
        """An existing run, to be gone on with; temporary files of a killed process are removed."""
        run = cls(path, record, resumed=True)
        run._prepare()
        return run

    def _prepare(self) -> None:
        for folder in (self.checkpoints, self.samples):
            _make(folder)
        records = self.path / ".hydra"
        remove_stale(self.path, self.checkpoints, self.samples, records, *records.glob("resume-*"))

    def withdraw(self) -> None:
        """Takes away what a new run makes before its first step, and nothing once there is more."""
        if (self.path / "metrics.jsonl").exists() or any(self.checkpoints.iterdir()):
            return
        self.log.close()
        for path in self._made:
            if path.is_dir():
                for name in self._record if path.name == ".hydra" else ():
                    remove(path / name)
                with contextlib.suppress(OSError):  # something else lies in there
                    path.rmdir()
            else:
                remove(path)

    def close(self) -> None:
        self.log.close()
        self._lock.close()

    def save_checkpoint(self, step: int, content: dict[str, Any], keep: int, *, best: bool = False) -> Path:
        """Writes checkpoints/step_XXXXXXXX.pt and removes the oldest beyond `keep`, never the one just written."""
        path = self.checkpoints / f"step_{step:08d}.pt"
        checkpoint.save(path, content)
        if best:
            self._keep_as_best(path)
        for old in sorted(self.checkpoints.glob("step_*.pt"))[:-keep]:
            if old != path:
                remove(old)
        return path

    def _keep_as_best(self, path: Path) -> None:
        """best.pt, a second name of the file where the file system has such."""
        try:
            with replacing(self.checkpoints / "best.pt", durable=True) as temporary:
                temporary.unlink(missing_ok=True)
                try:
                    os.link(path, temporary)
                except OSError:
                    shutil.copyfile(path, temporary)
        except OSError as error:
            raise WorldError(f"could not write {self.checkpoints / 'best.pt'}: {error}") from error

    def set_aside(self, step: int, bad: Iterable[Path] = ()) -> None:
        """Renames what a run resumed at `step` leaves behind: damaged checkpoints, and those of a future that it will
        make anew. Else a later `resume=latest` would go on from them."""
        ahead = [path for path in self.checkpoints.glob("step_*.pt") if step_of(path) > step]
        for path, ending in [*((p, "bad") for p in bad), *((p, "ahead") for p in ahead)]:
            if path.exists():
                path.replace(path.with_name(f"{path.name}.{ending}"))
                log.info("renamed %s to %s.%s", path, path.name, ending)

    def sample_path(self, step: int) -> Path:
        return self.samples / f"step_{step:08d}.png"

    def write_config(self, text: str) -> None:
        """config.yaml, once: a resumed run leaves the original. Hydra's record goes beside it, each time."""
        write_record(self.path, self._record, resumed=self._resumed)
        path = self.path / "config.yaml"
        if not self._resumed or not path.exists():  # of a new run there may be one of a start that came to nothing
            try:
                write_text(path, text)
            except OSError as error:
                raise WorldError(f"could not write {path}: {error.strerror}") from error


def _locked(path: Path) -> BinaryIO:
    """The folder's lock file, locked until it is closed; UserError if another process holds it."""
    try:
        file = open(path / ".lock", "a+b")  # noqa: SIM115 closed by RunDir
    except OSError as error:
        raise WorldError(f"cannot write to {path}: {error.strerror}; choose another run_dir") from error
    try:
        lock(file)
    except Busy:
        file.close()
        raise UserError(f"{path} is in use by another run; wait for it or choose another run_dir") from None
    return file


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorldError(f"cannot write to {folder}: {error.strerror}; choose another run_dir") from error
