"""Whether a folder may become a command's output: it is new, empty or the command's own."""

from pathlib import Path

from ddpm_cli.errors import UserError

# By command: a file that marks a folder as its own, and what it leaves there before that.
_MARKS = {"train": ".lock", "sample": "sampling.json"}
_EARLY = {
    "train": {"train.log"},
    "sample": {"images", "grid.png", "side_by_side.png", "samples.npz", "walk.gif", "x_0.png", "sample.log"},
}


def check_output(command: str, folder: Path, key: str) -> None:
    """UserError where the folder holds a run already, or is somebody else's: files would be written over, or lie
    among others. Hidden ones do not count."""
    if not folder.is_dir():
        return
    if command == "train" and any(folder.glob("checkpoints/*.pt")):
        raise UserError(f"{key}: {folder} holds a run already; go on with resume=auto, or name another folder")
    if command not in _MARKS or (folder / _MARKS[command]).exists():
        return
    names = sorted(path.name for path in folder.iterdir() if path.name[0] != "." and path.name not in _EARLY[command])
    if names:
        more = ", ..." if len(names) > 3 else ""
        raise UserError(
            f"{key}={folder} holds what ddpm-{command} did not write ({', '.join(names[:3])}{more}); choose a new or "
            "an empty folder"
        )
