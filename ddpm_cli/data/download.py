"""The files of torchvision's data sets: found, unpacked or downloaded, and checked before anything is read."""

import contextlib
import logging
import os
import socket
import sys
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from ddpm_cli.data.lock import locked
from ddpm_cli.errors import UserError, WorldError

log = logging.getLogger(__name__)

_TIMEOUT = 30  # seconds without an answer
# what torchvision, urllib, gzip and tarfile raise for bad networks and bad files; OSError has URLError and timeouts
_FAILURES = (RuntimeError, OSError, EOFError, HTTPException, tarfile.TarError, zlib.error)


@dataclass(frozen=True)
class Remote:
    """A file to download: its place on this disk, where it comes from, its MD5."""

    path: Path
    url: str
    md5: str

    def is_good(self) -> bool:
        from torchvision.datasets.utils import check_integrity

        return check_integrity(self.path, self.md5)


def remotes(dataset: Any, root: Path, split: str) -> list[Remote]:
    """What a class of torchvision.datasets would download for a split."""
    if hasattr(dataset, "mirrors"):  # the MNIST family
        raw = root / dataset.__name__ / "raw"
        return [Remote(raw / name, dataset.mirrors[0] + name, md5) for name, md5 in dataset.resources]
    if hasattr(dataset, "split_list"):  # SVHN
        url, name, md5 = dataset.split_list[split]
        return [Remote(root / name, url, md5)]
    return [Remote(root / dataset.filename, dataset.url, dataset.tgz_md5)]


def open_set(dataset: Any, root: Path, split: str, download: bool) -> Any:
    """A torchvision data set, loaded; unpacked and downloaded first where it must and may be."""
    found = _open(dataset, root, split)  # reads only, so no lock: what another run is unpacking counts as absent
    if found is not None:
        return found
    files = remotes(dataset, root, split)
    bad = [file for file in files if not file.is_good()]
    if bad and not download:
        trouble = f"dataset.root: {_trouble(dataset, root, bad)}"
        raise UserError(f"{trouble}\n{_remedy(bad)}, or set dataset.download=true or dataset.root=PATH")
    try:
        with _fetching(root):
            return _fetch(dataset, root, split)
    except _FAILURES as error:
        bad = [file for file in files if not file.is_good()]
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if not bad:
            raise WorldError(f"cannot unpack {files[0].path}: {reason}\nmake room, or set dataset.root=PATH") from error
        raise WorldError(
            f"{_trouble(dataset, root, bad)}: {_remedy(bad)}, or set dataset.root=PATH\nthe download failed: {reason}"
        ) from error


def _open(dataset: Any, root: Path, split: str) -> Any:
    """The set if it is unpacked and whole; else None."""
    if _damaged(dataset, root):
        return None
    try:
        return dataset(str(root), download=False, **_which(dataset, split))
    except RuntimeError:  # "not found or corrupted"
        return None
    except OSError as error:
        raise UserError(f"dataset.root: cannot read {error.filename or root} ({error.strerror})") from error


def _fetch(dataset: Any, root: Path, split: str) -> Any:
    """Download and unpack, under the lock; torchvision leaves out what is there and has the right checksum."""
    found = _open(dataset, root, split)  # the run we waited for may have done it
    if found is not None:
        return found
    for path in _damaged(dataset, root):
        log.warning("%s is damaged: it is unpacked again", path)
        path.unlink()
    missing = [file.url for file in remotes(dataset, root, split) if not file.is_good()]
    if missing:
        log.info("downloading %s to %s", ", ".join(missing), root)
    return dataset(str(root), download=True, **_which(dataset, split))


def _which(dataset: Any, split: str) -> dict[str, Any]:
    return {"split": split} if hasattr(dataset, "split_list") else {"train": split == "train"}


def _damaged(dataset: Any, root: Path) -> list[Path]:
    """Unpacked files of the MNIST family that are cut short: torchvision asks only whether they exist."""
    if not hasattr(dataset, "mirrors"):
        return []
    unpacked = [file.path.with_suffix("") for file in remotes(dataset, root, "train")]
    return [path for path in unpacked if path.is_file() and path.stat().st_size != _idx_size(path)]


def _idx_size(path: Path) -> int:
    """Bytes that the header of an idx file of uint8 promises: 2 zeros, type 8, number of sizes, big-endian sizes."""
    with open(path, "rb") as file:
        head = file.read(4)
        if len(head) < 4 or head[:3] != b"\0\0\x08":
            return -1
        size = 1
        for _ in range(head[3]):
            size *= int.from_bytes(file.read(4), "big")
    return 4 + 4 * head[3] + size


@contextlib.contextmanager
def _fetching(root: Path) -> Iterator[None]:
    """One run downloads at a time, without waiting for ever, and without a progress bar in a file."""
    root.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    with contextlib.ExitStack() as stack:
        lock = open(root / ".download.lock", "a+b")  # noqa: SIM115 (closed by the lock)
        stack.enter_context(locked(lock, f"another run downloads to {root}"))
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # stdout is for results
        if not sys.stderr.isatty():
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        socket.setdefaulttimeout(_TIMEOUT)
        try:
            yield
        finally:
            socket.setdefaulttimeout(before)


def _trouble(dataset: Any, root: Path, bad: list[Remote]) -> str:
    """Which file is wrong, and how."""
    for file in bad:
        if file.path.exists():
            return f"{file.path} has a wrong checksum (cut short?)"
    damaged = _damaged(dataset, root)
    return f"{damaged[0]} is cut short" if damaged else f"{dataset.__name__} is not in {bad[0].path.parent}"


def _remedy(bad: list[Remote]) -> str:
    names = ", ".join(file.path.name for file in bad)
    return f"put {names} (from {os.path.dirname(bad[0].url)}/) into {bad[0].path.parent.absolute()} and run again"
