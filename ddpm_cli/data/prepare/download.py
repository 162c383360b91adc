"""Published files, torchvision's data sets among them: found, unpacked or downloaded, and checked before use."""

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

from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.system.lock import lock

log = logging.getLogger(__name__)

_TIMEOUT = 30  # seconds without an answer
# what torchvision, urllib, gzip and tarfile raise for bad networks and bad files; OSError has URLError and timeouts
FAILURES = (RuntimeError, OSError, EOFError, HTTPException, tarfile.TarError, zlib.error)


@dataclass(frozen=True)
class Remote:
    """A file to download: its place on this disk, where it comes from, its MD5."""

    path: Path
    url: str
    md5: str

    def is_good(self) -> bool:
        from torchvision.datasets.utils import check_integrity

        return check_integrity(self.path, self.md5)


@dataclass(frozen=True)
class Source:
    """One split of a set of torchvision: where its files are, and what torchvision makes of them."""

    dataset: Any  # a class of torchvision.datasets
    root: Path
    which: dict[str, Any]  # the keyword that names the split
    files: list[Remote]
    unchecked: list[Path]  # unpacked files that torchvision reads without looking at their checksums

    def bad(self) -> list[Remote]:
        """Files that are missing or not what was published."""
        return [file for file in self.files if not file.is_good()]

    def cut_short(self) -> list[Path]:
        """Unpacked files that are not whole: torchvision asks only whether they exist."""
        return [path for path in self.unchecked if path.is_file() and path.stat().st_size != _idx_size(path)]

    def opened(self, *, download: bool) -> Any:
        """The set as torchvision loads it."""
        return self.dataset(str(self.root), download=download, **self.which)

    def unpacked(self) -> Any:
        """The set if it is unpacked and whole; else None."""
        if self.cut_short():
            return None
        try:
            return self.opened(download=False)
        except RuntimeError:  # "not found or corrupted"
            return None
        except OSError as error:
            raise UserError(f"dataset.root: cannot read {error.filename or self.root} ({error.strerror})") from error


def source(dataset: Any, root: Path, split: str) -> Source:
    """What torchvision would download for a split. It tells this in three ways, and all else follows from here."""
    train = {"train": split == "train"}
    if hasattr(dataset, "mirrors"):  # the MNIST family
        raw = root / dataset.__name__ / "raw"
        files = [Remote(raw / name, dataset.mirrors[0] + name, md5) for name, md5 in dataset.resources]
        return Source(dataset, root, train, files, unchecked=[file.path.with_suffix("") for file in files])
    if hasattr(dataset, "split_list"):  # SVHN
        url, name, md5 = dataset.split_list[split]
        return Source(dataset, root, {"split": split}, [Remote(root / name, url, md5)], unchecked=[])
    archive = Remote(root / dataset.filename, dataset.url, dataset.tgz_md5)  # CIFAR
    return Source(dataset, root, train, [archive], unchecked=[])


def open_set(source: Source, download: bool) -> Any:
    """A torchvision data set, loaded; unpacked and downloaded first where it must and may be."""
    found = source.unpacked()  # reads only, so no lock: what another run is unpacking counts as absent
    if found is not None:
        return found
    bad = source.bad()
    if bad and not download:
        trouble = f"dataset.root: {_trouble(source, bad)}"
        raise UserError(f"{trouble}\n{_remedy(bad)}, or set dataset.download=true or dataset.root=PATH")
    try:
        with fetching(source.root):
            found = source.unpacked()  # the run we waited for may have done it
            return _fetched(source) if found is None else found
    except FAILURES as error:
        bad = source.bad()
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if not bad:
            archive = source.files[0].path
            raise WorldError(f"cannot unpack {archive}: {reason}\nmake room, or set dataset.root=PATH") from error
        raise WorldError(
            f"{_trouble(source, bad)}: {_remedy(bad)}, or set dataset.root=PATH\nthe download failed: {reason}"
        ) from error


def _fetched(source: Source) -> Any:
    """The set, downloaded and unpacked; torchvision leaves out what is there and has the right checksum."""
    for path in source.cut_short():
        log.warning("%s is damaged: it is unpacked again", path)
        path.unlink()
    if missing := source.bad():
        log.info("downloading %s to %s", ", ".join(file.url for file in missing), source.root)
    return source.opened(download=True)


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
def fetching(root: Path) -> Iterator[None]:
    """One run downloads at a time, without waiting for ever, and without a progress bar in a file."""
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        lock(stack.enter_context(open(root / ".download.lock", "a+b")), f"another run downloads to {root}")
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # stdout is for results
        if not sys.stderr.isatty():
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        stack.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
        socket.setdefaulttimeout(_TIMEOUT)  # torchvision's downloads have none of their own
        yield


def bring(path: Path, url: str, sha256: str) -> None:
    """Downloads one file to `path`, unless another command has meanwhile; nothing is left of one whose hash does not
    begin with `sha256`. WorldError says why it could not be had."""
    import torch

    try:
        with fetching(path.parent):
            if not path.is_file():
                log.info("downloading %s to %s", url, path)
                torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=sys.stderr.isatty())
    except FAILURES as error:
        raise WorldError(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from error


def _trouble(source: Source, bad: list[Remote]) -> str:
    """Which file is wrong, and how."""
    for file in bad:
        if file.path.exists():
            return f"{file.path} has a wrong checksum (cut short?)"
    short = source.cut_short()
    return f"{short[0]} is cut short" if short else f"{source.dataset.__name__} is not in {bad[0].path.parent}"


def _remedy(bad: list[Remote]) -> str:
    names = ", ".join(file.path.name for file in bad)
    return f"put {names} (from {os.path.dirname(bad[0].url)}/) into {bad[0].path.parent.absolute()} and run again"
