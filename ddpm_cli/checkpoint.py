"""Checkpoint files: tensors and plain values in one file, written whole or not at all, read without running code."""

import logging
import os
import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.run_dir import checkpoints, find_checkpoint

log = logging.getLogger("ddpm_cli")

FORMAT = 1
_KEYS = ("format", "step", "config", "network", "emas")
# Behind the archive stands a checksum of every byte before it. The archive's own leave out its directory and padding,
# and torch.load looks at neither.
_SEAL = re.compile(rb"ddpm_cli crc32 ([0-9a-f]{8})\n")
_SEAL_BYTES = len(b"ddpm_cli crc32 00000000\n")
_BLOCK = 2**22

Content = dict[str, Any]


class Damaged(UserError):
    """A file that is not what was written, or no checkpoint at all: another one may serve."""


class _Summed:
    """A file that sums what is meant to be written, so that the disk can be asked whether it was."""

    def __init__(self, file: BinaryIO):
        self.file, self.crc = file, 0

    def write(self, data: Any) -> int:
        self.crc = zlib.crc32(data, self.crc)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def save(path: Path, content: Content) -> None:
    """Writes `content` to `path` atomically: a temporary file beside it, flushed, verified, then renamed over it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            summed = _Summed(file)
            torch.save({"format": FORMAT, **content}, summed)  # type: ignore[arg-type]  # it needs no more of a file
            file.write(b"ddpm_cli crc32 %08x\n" % summed.crc)
            file.flush()
            os.fsync(file.fileno())
        verify(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        _remove(temporary)
        # torch reports a failed write as RuntimeError without an errno.
        if isinstance(error, OSError | RuntimeError | UserError) and not isinstance(error, torch.OutOfMemoryError):
            raise WorldError(f"could not write {path}: {_reason(path, content, error)}") from error
        raise


def load(path: Path) -> Content:
    """The verified content of a checkpoint, on the CPU. UserError says what is wrong with the file."""
    verify(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own message advises to load it unsafely, which would run code from the file.
        raise Damaged(f"{path} is not a checkpoint of ddpm-train ({type(error).__name__})") from error
    if not isinstance(content, dict) or not all(key in content for key in _KEYS) or type(content["config"]) is not dict:
        raise Damaged(f"{path} is not a checkpoint of ddpm-train: it lacks the entries {', '.join(_KEYS)}")
    if content["format"] != FORMAT:
        raise UserError(
            f"{path} has format {content['format']}, this version reads {FORMAT}; use the version that wrote it"
        )
    _refuse_interpolations(content["config"], path)
    return content


def verify(path: Path) -> None:
    """Damaged unless every byte of the file is as it was written (torch.load does not look at its checksums)."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            crc = _crc(file, size - _SEAL_BYTES)
            seal = _SEAL.fullmatch(file.read())
            entries = zipfile.ZipFile(file).infolist()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except PermissionError:
        raise UserError(f"{path} cannot be read: permission denied") from None
    except Exception as error:  # what a damaged archive raises has no common type
        raise Damaged(f"{path} is damaged or no checkpoint ({type(error).__name__}: {error})") from error
    if seal is None or int(seal[1], 16) != crc:
        raise Damaged(f"{path} is damaged or no checkpoint of ddpm-train: its checksum does not match")
    if sum(entry.file_size for entry in entries) > size:  # ours are stored as they are; others could fill the memory
        raise Damaged(f"{path} is no checkpoint of ddpm-train: its entries are compressed")


def _crc(file: BinaryIO, size: int) -> int:
    """The checksum of the first `size` bytes of a file."""
    crc = 0
    while size > 0 and (block := file.read(min(_BLOCK, size))):
        crc, size = zlib.crc32(block, crc), size - len(block)
    return crc


def first_good(
    paths: Iterable[Path], run: Path, remedy: str = "start a new run in another run_dir"
) -> tuple[Path, Content, list[Path]]:
    """The first checkpoint that can be read, its content, and the damaged ones before it, which a warning names."""
    bad: list[Path] = []
    reasons: list[str] = []
    for path in paths:
        try:
            content = load(path)
        except Damaged as error:
            bad.append(path)
            reasons.append(str(error))
            continue
        if bad:
            log.warning("%s; passed over for %s", "; ".join(reasons), path)
        return path, content, bad
    raise UserError(
        f"no checkpoint in {run / 'checkpoints'} can be read: {'; '.join(reasons[:2]) or 'there is none'}\n{remedy}"
    )


def find(spec: str, *, key: str = "ckpt") -> Path:
    """The checkpoint file that `latest` or a run folder names: its furthest undamaged one; a file is taken as it is."""
    found = find_checkpoint(spec, key=key)
    if str(spec) != "latest" and Path(spec).expanduser().is_file():
        return found
    run = found.parent.parent
    return first_good(checkpoints(run), run, f"name another run or checkpoint file with {key}=PATH")[0]


def sync_folder(folder: Path) -> None:
    """Makes a rename in the folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(temporary: Path) -> None:
    try:
        temporary.unlink(missing_ok=True)
    except OSError as error:  # must not hide what ended the writing
        log.warning("could not remove %s: %s", temporary, error)


def _refuse_interpolations(node: Any, path: Path) -> None:
    if isinstance(node, str) and "${" in node:
        raise UserError(f"{path}: its configuration holds an interpolation ({node}), which a checkpoint never does")
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _refuse_interpolations(child, path)


def _tensor_bytes(node: Any) -> int:
    if isinstance(node, torch.Tensor):
        return node.nbytes
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    return sum(map(_tensor_bytes, children))


def _reason(path: Path, content: Content, error: BaseException) -> str:
    try:
        status = os.statvfs(path.parent)
        free = f"{status.f_bavail * status.f_frsize / 2**20:.0f} MiB free in {path.parent}"
    except OSError:
        free = f"{path.parent} is not there"
    return f"{error} (it needs {_tensor_bytes(content) / 2**20:.1f} MiB; {free})".replace("\n", " ")
