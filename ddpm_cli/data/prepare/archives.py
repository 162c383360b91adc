"""Files in zip and tar archives, read where they lie: classes by folder, or in a file beside each (webdataset)."""

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import tarfile
import tempfile
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

from ddpm_cli.data.prepare.classes import Value, classes_of, number_or_name, values_by_pattern
from ddpm_cli.data.prepare.listing import IMAGES, File, Kind, Listing, check_loose, ending_of
from ddpm_cli.errors import UserError
from ddpm_cli.media.base import DecodeError
from ddpm_cli.system.files import write_text

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_LABELS = ("cls", "label", "class")  # the first of them that a KEY.json has
_SIDECARS = ("cls", "json")
_KEPT_FROM = 1.0  # seconds that it took to list an archive, above which the list is kept
_UNPACKERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}  # by a file's first bytes
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError)


class _Member(NamedTuple):
    """A file in an archive."""

    archive: int
    name: str  # as the archive has it
    path: str  # with / between folders
    size: int
    changed: int  # what tells it from an earlier one: seconds, or a checksum
    offset: int  # of its bytes in a tar that is not compressed
    content: str | None  # of what says a class


@dataclass(frozen=True)
class Archives:
    """One archive, or several that are one data set. A Source."""

    paths: tuple[Path, ...]
    listing: Listing
    states: tuple[tuple[str, int, int], ...]  # name, size and time of each archive
    _members: dict[str, _Member]  # by the path of a listed file

    @property
    def key(self) -> dict[str, Any]:
        return {"archives": self.states}

    @property
    def sequential(self) -> Path | None:
        return next((path for path in self.paths if path.suffix.lower() != ".zip" and _unpacker(path)), None)

    def place(self, file: File) -> str:
        member = self._members[file.path]
        return f"{self.paths[member.archive]}: {member.name}"

    @contextmanager
    def reading(self, scratch: Path) -> Iterator[Callable[[File], IO[bytes]]]:
        """What gives a file's bytes, from any thread. A compressed tar is unpacked in `scratch` meanwhile."""
        with ExitStack() as stack:
            readers = [stack.enter_context(_reader(path, scratch)) for path in self.paths]

            def read(file: File) -> IO[bytes]:
                member = self._members[file.path]
                return io.BytesIO(readers[member.archive](member))

            yield read


def archives_in(root: Path, kind: Kind = IMAGES) -> tuple[Path, ...]:
    """`root` itself if it is an archive; of a folder that holds archives and no folders and loose files, these."""
    if root.is_file():
        return (root,) if _is_archive(root.name) else ()
    if not root.is_dir():
        return ()
    with os.scandir(root) as entries:
        seen = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    others = any(entry.is_dir() or ending_of(entry.name) in kind.extensions for entry in seen)
    return () if others else tuple(Path(entry.path) for entry in seen if _is_archive(entry.name))


def open_archives(
    paths: Sequence[Path], cache_dir: Path, kind: Kind = IMAGES, label_pattern: str | None = None
) -> Archives:
    """The files of a kind, in the order of the set: by class, then by archive and path. cache_dir: see _members."""
    states = tuple((path.name, (s := path.stat()).st_size, s.st_mtime_ns) for path in paths)
    each = enumerate(zip(paths, states, strict=True))
    members = [m for number, (path, state) in each for m in _members(number, path, *state[1:], cache_dir)]
    root = paths[0] if len(paths) == 1 else paths[0].parent
    chosen = _below_the_top([member for member in members if ending_of(member.path) in kind.extensions])
    if not chosen:
        raise UserError(f"dataset.root: no {kind.one} files in {root} ({' '.join(kind.extensions)})")
    if label_pattern is not None:
        values: Sequence[Value] | None = values_by_pattern([member.path for member in chosen], label_pattern)
    else:
        values = _values_beside(members, chosen, root, kind)
    by_folder = values is None
    used = (*kind.extensions, *(() if by_folder else (f".{ending}" for ending in _SIDECARS)))
    left_out = Counter(ending for member in members if (ending := ending_of(member.path)) not in used)
    if values is None:
        check_loose(root, next((m.name for m in chosen if "/" not in m.path), None), _first_folder(chosen), kind)
        values = [member.path.partition("/")[0] for member in chosen] if _first_folder(chosen) else None
    labels, classes = classes_of(values) if values else ([-1] * len(chosen), ())
    several = len(paths) > 1
    files, found = [], {}
    rows = zip(labels, chosen, strict=True)
    for label, member in sorted(rows, key=lambda row: (row[0], row[1].archive, row[1].path.split("/"))):
        path = f"{paths[member.archive].name}/{member.path}" if several else member.path
        found[path] = member
        files.append(File(path, label, member.size, member.changed))
    return Archives(tuple(paths), Listing(files, classes, left_out, by_folder and not several), states, found)


def _is_archive(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


@cache
def _members(number: int, path: Path, size: int, modified: int, cache_dir: Path) -> tuple[_Member, ...]:
    """All files of an archive but hidden ones; of two with one name the later, as unpacking would have it.

    A tar has no directory: of many images every command, and every rank, would read all of it to know what is there.
    """
    index = cache_dir / f".{path.name}-{size}-{modified}.index"
    with suppress(OSError, ValueError, TypeError):  # but OSError, of a damaged one
        rows = json.loads(index.read_text(encoding="utf-8"))
        return tuple(_Member._make((number, *row)) for row in rows)
    began = time.monotonic()
    found = _listed(number, path)
    if time.monotonic() - began > _KEPT_FROM:
        with suppress(OSError):  # to read the archive again is only slower
            cache_dir.mkdir(parents=True, exist_ok=True)
            write_text(index, json.dumps([member[1:] for member in found]))
    return found


def _listed(number: int, path: Path) -> tuple[_Member, ...]:
    found: dict[str, _Member] = {}
    try:
        for member in _of_zip(number, path) if path.suffix.lower() == ".zip" else _of_tar(number, path):
            if not any(part.startswith(".") or part == "__MACOSX" for part in member.path.split("/")):
                found[member.path] = member
    except _BROKEN as error:
        last = f" after {next(reversed(found.values())).name}" if found else ""
        raise UserError(f"dataset.root: {path} is damaged{last} ({error}); bring it anew") from error
    return tuple(found.values())


def _of_zip(number: int, path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as opened:
        for info in opened.infolist():
            if not info.is_dir():
                name = _plain(info.filename)
                content = _text(opened.read(info)) if _key(name)[1] in _SIDECARS else None
                yield _Member(number, info.filename, name, info.file_size, info.CRC, 0, content)


def _of_tar(number: int, path: Path) -> Iterator[_Member]:
    with tarfile.open(path, "r|*" if _unpacker(path) else "r:") as opened:
        for info in opened:
            if info.isreg():
                name = _plain(info.name)
                file = opened.extractfile(info) if _key(name)[1] in _SIDECARS else None
                content = None if file is None else _text(file.read())
                yield _Member(number, info.name, name, info.size, int(info.mtime), info.offset_data, content)
        if not _unpacker(path) and not _ends_at(path, opened.offset):
            raise EOFError("it is cut off")


def _ends_at(path: Path, offset: int) -> bool:
    """Whether a tar has its mark of an end there; tarfile takes a cut off one for a whole."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(512) == bytes(512)


def _text(content: bytes) -> str:
    return content.decode("utf-8-sig", errors="replace")


def _plain(name: str) -> str:
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _below_the_top(members: list[_Member]) -> list[_Member]:
    """Without the folders that all of them lie in, as archives are packed."""
    while members and len({m.path.partition("/")[0] for m in members}) == 1 and all("/" in m.path for m in members):
        members = [member._replace(path=member.path.partition("/")[2]) for member in members]
    return members


def _first_folder(members: Sequence[_Member]) -> str | None:
    return next((member.path.partition("/")[0] for member in members if "/" in member.path), None)


def _key(path: str) -> tuple[str, str]:
    """webdataset's key and the rest: a name is cut at its first dot."""
    folder, _, name = path.rpartition("/")
    key, _, ending = name.partition(".")
    return f"{folder}/{key}", ending.lower()


def _values_beside(members: Sequence[_Member], chosen: list[_Member], root: Path, kind: Kind) -> list[Value] | None:
    """The classes that KEY.cls or KEY.json tell of KEY.png; None where no file has any. Of several files with one
    key that which is KEY.ENDING counts: `chosen` is left with these alone."""
    told: dict[tuple[int, str], Value] = {}
    for member in members:
        key, ending = _key(_plain(member.name))
        if ending == "cls" and member.content is not None:
            told[member.archive, key] = number_or_name(member.content.strip())
        elif ending == "json" and member.content is not None:
            value = _value_in(member, root)
            if value is not None:
                told.setdefault((member.archive, key), value)
    keys = [(m.archive, _key(_plain(m.name))) for m in chosen]
    if not any((archive, key) in told for archive, (key, _) in keys):
        return None
    main = [k for k, (_, (_, ending)) in enumerate(keys) if f".{ending}" in kind.extensions]
    chosen[:] = [chosen[k] for k in main]
    rows = [(keys[k][0], keys[k][1][0]) for k in main]
    if missing := next((m.name for m, row in zip(chosen, rows, strict=True) if row not in told), None):
        raise UserError(f"dataset.root: {root}: {missing} has no class beside it (.cls or .json), and others have")
    return [told[row] for row in rows]


def _value_in(member: _Member, root: Path) -> Value | None:
    try:
        table = json.loads(member.content or "")
    except ValueError as error:
        raise UserError(f"dataset.root: {root}: {member.name} is no JSON ({error}); correct it") from error
    value = next((table[key] for key in _LABELS if key in table), None) if isinstance(table, dict) else None
    return value if isinstance(value, int | str) else None


def _unpacker(path: Path) -> Callable[..., Any] | None:
    """What opens a compressed file; None for a plain one."""
    with open(path, "rb") as file:
        return _UNPACKERS.get(file.read(2))


@contextmanager
def _reader(path: Path, scratch: Path) -> Iterator[Callable[[_Member], bytes]]:
    """What gives a member's bytes, or DecodeError."""
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as opened:
            yield lambda member: _unzipped(opened, member)
        return
    unpacker = _unpacker(path)
    if unpacker is None:
        yield lambda member: _opened_for(path, member)
        return
    lock, unpacked = threading.Lock(), None
    with ExitStack() as stack:

        def read(member: _Member) -> bytes:
            nonlocal unpacked
            with lock:
                if unpacked is None:  # once, and if it must be, since the set's order is not the archive's
                    scratch.mkdir(parents=True, exist_ok=True)
                    unpacked = stack.enter_context(tempfile.TemporaryFile(dir=scratch))
                    with unpacker(path) as packed:
                        shutil.copyfileobj(packed, unpacked, 2**20)
                return _in_tar(unpacked, member)

        yield read


def _opened_for(path: Path, member: _Member) -> bytes:
    """Each time: there may be thousands of shards, and no more are open than are being read."""
    with open(path, "rb") as file:
        return _in_tar(file, member)


def _in_tar(file: IO[bytes], member: _Member) -> bytes:
    file.seek(member.offset)
    content = file.read(member.size)
    if len(content) < member.size:
        raise DecodeError("the archive ends in the middle of it")
    return content


def _unzipped(opened: zipfile.ZipFile, member: _Member) -> bytes:
    try:
        return opened.read(member.name)
    except (*_BROKEN, RuntimeError, NotImplementedError) as error:  # RuntimeError: encrypted
        raise DecodeError(f"cannot be unpacked ({error})") from error
