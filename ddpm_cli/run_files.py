"""A run's folder: its files by name, its checkpoints rotated, its lock, its result."""

import contextlib
import csv
import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ddpm_cli import checkpoint
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.run_dir import step_of

log = logging.getLogger("ddpm_cli")


class RunDir:
    """Held by one process at a time; closing it (or dying) lets go of the lock."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints, self.samples = path / "checkpoints", path / "samples"
        self._lock = _locked(path)

    @classmethod
    def create(cls, path: Path) -> "RunDir":
        """A new run; UserError if the folder already holds one. One that made no checkpoint does not count."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorldError(f"cannot write to {path}: {error.strerror}; choose another run_dir") from error
        run = cls(path)
        try:
            run.checkpoints.mkdir()
        except OSError as error:
            if not run.checkpoints.is_dir() or any(run.checkpoints.glob("*.pt")):
                run.close()
                raise _cannot_create(path, error) from None
            _unlink(path / "config.yaml")  # of a run that may have been another
        run._prepare()
        return run

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """An existing run, to be gone on with; temporary files of a killed process are removed."""
        run = cls(path)
        run._prepare()
        return run

    def _prepare(self) -> None:
        for folder in (self.checkpoints, self.samples):
            folder.mkdir(exist_ok=True)
        for folder in (self.path, self.checkpoints, self.samples):
            for stale in folder.glob(".*.tmp"):
                _unlink(stale)

    def withdraw(self) -> None:
        """Takes away what a new run makes before its first step, and nothing once there is more."""
        if (self.path / "metrics.jsonl").exists() or any(self.checkpoints.iterdir()):
            return
        for name in ("config.yaml", "result.json", ".lock"):
            _unlink(self.path / name)
        for folder in (self.checkpoints, self.samples):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def close(self) -> None:
        os.close(self._lock)

    def save_checkpoint(self, step: int, content: dict[str, Any], keep: int, *, best: bool = False) -> Path:
        """Writes checkpoints/step_XXXXXXXX.pt and removes the oldest beyond `keep`, never the one just written."""
        path = self.checkpoints / f"step_{step:08d}.pt"
        checkpoint.save(path, content)
        if best:
            self._keep_as_best(path)
        for old in sorted(self.checkpoints.glob("step_*.pt"))[:-keep]:
            if old != path:
                _unlink(old)
        return path

    def _keep_as_best(self, path: Path) -> None:
        """best.pt, a second name of the file where the file system has such."""
        temporary = self.checkpoints / ".best.pt.tmp"
        try:
            temporary.unlink(missing_ok=True)
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copyfile(path, temporary)
            os.replace(temporary, self.checkpoints / "best.pt")
            checkpoint.sync_folder(self.checkpoints)
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
        """config.yaml, once: a resumed run leaves the original."""
        path = self.path / "config.yaml"
        if not path.exists():
            _replace(path, text)

    def write_result(self, result: dict[str, Any]) -> None:
        _replace(self.path / "result.json", json.dumps(result, indent=2) + "\n")


def _locked(path: Path) -> int:
    """The descriptor of the folder's lock file, locked; UserError if another process holds it."""
    try:
        lock = os.open(path / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise WorldError(f"cannot write to {path}: {error.strerror}; choose another run_dir") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(f"{path} is in use by another run; wait for it or choose another run_dir") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        log.warning("%s cannot be locked (%s): take care that no two runs share it", path, error.strerror)
    return lock


def _cannot_create(path: Path, error: OSError) -> Exception:
    if isinstance(error, FileExistsError):
        return UserError(f"{path} already holds a run; go on with resume={path}, or choose another run_dir")
    return WorldError(f"cannot write to {path}: {error.strerror}; choose another run_dir")


def _unlink(path: Path) -> None:
    """A file that will not go is not worth a run."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("could not remove %s: %s", path, error)


def write_summary(sweep: Path) -> None:
    """summary.csv of a sweep: one row a job that has ended, from the jobs' result.json files."""
    results = []
    for path in sweep.glob("*/result.json"):
        try:
            results.append({"job": path.parent.name, **json.loads(path.read_text(encoding="utf-8"))})
        except (OSError, ValueError):
            continue  # being written by another job, which rewrites the summary when it is done
    results.sort(key=lambda r: (len(r["job"]), r["job"]))
    rows = [
        {
            "job": r["job"],
            "status": r["status"],
            **dict(o.split("=", 1) for o in r["overrides"] if "=" in o),
            **r["metrics"],
        }
        for r in results
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    temporary = sweep / f".summary.{os.getpid()}.tmp"
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(sweep / "summary.csv")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        _unlink(temporary)
        raise WorldError(f"could not write {path}: {error.strerror}") from error
