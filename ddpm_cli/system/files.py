"""Files written whole or not at all: what is read under a name is never half of what was meant."""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("ddpm_cli")


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to. At the end it takes its place at once; if the writing fails, it is removed.

    Its name is `.NAME.PID.tmp`: hidden, and no other process's. durable: the content reaches the disk before its name
    does, and the name before this returns, so that a power cut leaves the old file or the new one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    except BaseException:
        remove(temporary)
        raise


def write_text(path: Path, text: str) -> None:
    """The text in UTF-8, as the whole content of the file; OSError as it comes."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Waits until what a file holds, or the names in a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale(*folders: Path) -> None:
    """What processes that were killed in `replacing` left in these folders; those below may be others'."""
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            remove(path)


def remove(path: Path) -> None:
    """The file, if it is there; one that will not go is told of, since it is not worth a run."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("could not remove %s: %s", path, error)


def sha256_of(path: Path) -> str:
    """Of the whole file, as sha256sum tells it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
