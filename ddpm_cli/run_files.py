"""A run's folder: its files by name, its checkpoints rotated, its lock, its result."""

import csv
import fcntl
import json
import logging
import os
from pathlib import Path
from typing import Any

from ddpm_cli import checkpoint
from ddpm_cli.errors import UserError

log = logging.getLogger("ddpm_cli")


class RunDir:
    """Held by one process at a time; closing it (or dying) lets go of the lock."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints, self.samples = path / "checkpoints", path / "samples"
        self._lock = os.open(path / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise UserError(f"{path} is in use by another run; wait for it or choose another run_dir") from None

    @classmethod
    def create(cls, path: Path) -> "RunDir":
        """A new run; UserError if the folder already holds one."""
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        try:
            run.checkpoints.mkdir()
        except FileExistsError:
            run.close()
            raise UserError(
                f"{path} already holds a run; go on with resume={path}, or choose another run_dir"
            ) from None
        run.samples.mkdir(exist_ok=True)
        return run

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """An existing run, to be gone on with; temporary files of a killed process are removed."""
        run = cls(path)
        for folder in (run.checkpoints, run.samples):
            folder.mkdir(exist_ok=True)
            for stale in folder.glob(".*.tmp"):
                stale.unlink(missing_ok=True)
        return run

    def close(self) -> None:
        os.close(self._lock)

    def save_checkpoint(self, step: int, content: dict[str, Any], keep: int) -> Path:
        """Writes checkpoints/step_XXXXXXXX.pt and removes the oldest beyond `keep`, never the one just written."""
        path = self.checkpoints / f"step_{step:08d}.pt"
        checkpoint.save(path, content)
        for old in sorted(self.checkpoints.glob("step_*.pt"))[:-keep]:
            if old != path:
                try:
                    old.unlink(missing_ok=True)
                except OSError as error:
                    log.warning("could not remove the old checkpoint %s: %s", old, error)
        return path

    def sample_path(self, step: int) -> Path:
        return self.samples / f"step_{step:08d}.png"

    def write_config(self, text: str) -> None:
        """config.yaml, once: a resumed run leaves the original."""
        path = self.path / "config.yaml"
        if not path.exists():
            _replace(path, text)

    def write_result(self, result: dict[str, Any]) -> None:
        _replace(self.path / "result.json", json.dumps(result, indent=2) + "\n")


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
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
