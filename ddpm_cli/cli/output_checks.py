"""Whether a folder may become a command's output: it is new, empty or the command's own."""

import os
from pathlib import Path

from ddpm_cli.errors import UserError, WorldError

# By command: a file that marks a folder as its own, and what it leaves there before that.
_MARKS = {"train": ".lock", "sample": "sampling.json", "eval": "evaluation.json"}
_EARLY: dict[str, set[str]] = {
    "train": {"train.log"},
    "sample": {
        *("images", "sounds", "grid.png", "grid.wav", "side_by_side.png", "samples.npz", "walk.gif", "x_0.png"),
        "sample.log",
    },
    "export": set(),  # written whole, once
    "eval": {"features", "likelihood", "grid.png", "memorisation.png", "samples.npz", "result.json", "eval.log"},
}


def check_output(command: str, folder: Path, key: str) -> None:
    """UserError where the folder holds a run already, or is somebody else's: files would be written over, or lie
    among others. Hidden ones do not count."""
    if not folder.is_dir():
        return
    if command == "train" and any(folder.glob("checkpoints/*.pt")):
        raise UserError(f"{key}: {folder} holds a run already; go on with resume=auto, or name another folder")
    if command not in _EARLY or (folder / _MARKS.get(command, "")).is_file():
        return
    known = {*_EARLY[command], "result.json"}  # that of a job which was refused
    names = sorted(path.name for path in folder.iterdir() if path.name[0] != "." and path.name not in known)
    if names:
        more = ", ..." if len(names) > 3 else ""
        others = f"what ddpm-{command} did not write" if command in _MARKS else "files already, of an export or others"
        raise UserError(
            f"{key}={folder} holds {others} ({', '.join(names[:3])}{more}); choose a new or an empty folder"
            f"{'' if command in _MARKS else ', or remove this one'}"
        )


def check_writable(folder: Path, typed: str | None) -> None:
    """Refuse a folder that cannot be made or written into; typed: the key that names it, None where nobody did."""
    there = next(path for path in [folder, *folder.parents] if os.path.lexists(path))
    probe = there / f".ddpm_cli.{os.getpid()}.tmp"
    try:  # the system is asked: root's rights, read-only mounts and places like /proc each have rules of their own
        before = there.stat()
        probe.mkdir()
        probe.rmdir()
        os.utime(there, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nobody had asked
        return
    except OSError as error:
        reason = "is not a folder" if not there.is_dir() else f"is not writable ({error.strerror})"
    if typed:
        raise UserError(f"{typed}: cannot write to {folder}: {there} {reason}")
    raise WorldError(f"cannot write to {folder}: {there} {reason}; choose another with run_dir=PATH or out_dir=PATH")
