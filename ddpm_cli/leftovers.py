"""What Hydra makes for a command before its work begins: taken away again where the command is refused."""

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path

_RECORD = ("config.yaml", "hydra.yaml", "overrides.yaml")  # what Hydra writes into hydra.output_subdir


@dataclass(frozen=True)
class Before:
    """An output folder as it was before Hydra began."""

    folder: Path
    record: Path  # hydra.output_subdir
    kept: dict[str, bytes] | None  # the files of a record that was there
    names: frozenset[str]  # in the folder
    missing: list[Path]  # the folder and those above it that were not there, the innermost first


def before(folder: Path, subdir: str) -> Before:
    """The folder as it is now; `subdir` is where Hydra will leave its record in it."""
    record = folder / subdir
    names = frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    files = {name: record / name for name in _RECORD}
    kept = {name: path.read_bytes() for name, path in files.items() if path.is_file()} if record.exists() else None
    return Before(folder, record, kept, names, missing)


def clear(was: Before) -> None:
    """Removes the record, the log and the folders that this command made; a record that was there is put back.

    All stays where the work began: something else came into the folder.
    """
    logs = _logs(was)
    ours = {was.record.relative_to(was.folder).parts[0], *(Path(log.baseFilename).name for log in logs)}
    if not was.folder.is_dir() or {path.name for path in was.folder.iterdir()} - was.names - ours:
        return
    with contextlib.suppress(OSError):  # what cannot be removed does no harm
        for log in logs:
            logging.getLogger().removeHandler(log)  # open, it would make its file anew
            log.close()
            Path(log.baseFilename).unlink(missing_ok=True)
        for name in _RECORD:
            if was.kept and name in was.kept:
                (was.record / name).write_bytes(was.kept[name])
            else:
                (was.record / name).unlink(missing_ok=True)
        if was.kept is None:
            was.record.rmdir()
        for folder in was.missing:
            folder.rmdir()  # not if another command has its own in there


def _logs(was: Before) -> list[logging.FileHandler]:
    """The command's log files that were not there before."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    paths = {handler: Path(handler.baseFilename) for handler in handlers}
    return [log for log, path in paths.items() if path.parent == was.folder and path.name not in was.names]
