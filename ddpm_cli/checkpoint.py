"""Checkpoint files: tensors and plain values in one file, written whole or not at all, read without running code."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from ddpm_cli.errors import UserError, WorldError

FORMAT = 1
_KEYS = ("format", "step", "config", "network", "emas")


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes `content` to `path` atomically: a temporary file beside it, flushed, verified, then renamed over it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        verify(temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # torch reports a failed write as RuntimeError without an errno.
        if isinstance(error, OSError | RuntimeError | UserError) and not isinstance(error, torch.OutOfMemoryError):
            raise WorldError(f"could not write {path}: {_reason(path, error)}") from error
        raise


def load(path: Path) -> dict[str, Any]:
    """The verified content of a checkpoint, on the CPU. UserError says what is wrong with the file."""
    verify(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own message advises weights_only=False, which would run code from the file.
        raise UserError(f"{path} is not a checkpoint of ddpm-train ({type(error).__name__})") from error
    if not isinstance(content, dict) or not all(key in content for key in _KEYS):
        raise UserError(f"{path} is not a checkpoint of ddpm-train: it lacks the entries {', '.join(_KEYS)}")
    if content["format"] != FORMAT:
        raise UserError(
            f"{path} has format {content['format']}, this version reads {FORMAT}; use the version that wrote it"
        )
    return content


def verify(path: Path) -> None:
    """UserError unless every byte of the file agrees with the checksums in it (torch.load does not look at them)."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except PermissionError:
        raise UserError(f"{path} cannot be read: permission denied") from None
    except Exception as error:  # what a damaged archive raises has no common type
        raise UserError(f"{path} is damaged or no checkpoint ({type(error).__name__}: {error})") from error
    if bad is not None:
        raise UserError(f"{path} is damaged: {bad} does not match its checksum")


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(path: Path, error: BaseException) -> str:
    try:
        status = os.statvfs(path.parent)
        free = f"{status.f_bavail * status.f_frsize / 2**20:.0f} MiB free in {path.parent}"
    except OSError:
        free = f"{path.parent} is not there"
    return f"{error} ({free})".replace("\n", " ")
