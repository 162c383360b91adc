"""Arrays of .npy and .npz files, read from front to back, so that they may be larger than memory."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from ddpm_cli.errors import UserError

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_NUMBERS = 2**22  # that are read at once


@dataclass(frozen=True)
class ArrayFile:
    """An array in a file."""

    path: Path
    name: str | None  # in an .npz archive
    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return str(self.path) if self.name is None else f"{self.path}: {self.name}"

    def blocks(self) -> Iterator[np.ndarray]:
        """The rows, some at a time; UserError where the file ends before it should."""
        row = int(np.prod(self.shape[1:]))
        at_once = max(1, _NUMBERS // max(row, 1))
        with _opened(self.path, self.name) as file:
            _header(file)
            for start in range(0, self.shape[0], at_once):
                count = min(at_once, self.shape[0] - start)
                content = _exactly(file, count * row * self.dtype.itemsize)
                if content is None:
                    raise UserError(f"dataset.root: {self} ends after less than {start + count} rows; bring it anew")
                yield np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])

    def all(self) -> np.ndarray:
        return np.concatenate([*self.blocks()]) if self.shape[0] else np.empty(self.shape, self.dtype)


def arrays_of(path: Path) -> list[ArrayFile]:
    """All arrays of a file; UserError for what is none, or cannot be read without running code."""
    if not path.is_file():
        trouble = "is no file" if path.exists() else "does not exist"
        raise UserError(f"dataset.root: {path} {trouble}; set dataset.root=FILE to an .npy or .npz file")
    try:
        names = [None] if path.suffix.lower() == ".npy" else _names(path)
        return [_described(path, name) for name in names]
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"dataset.root: {path} cannot be read as .npy or .npz ({error})") from error


def _names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def _described(path: Path, name: str | None) -> ArrayFile:
    with _opened(path, name) as file:
        shape, fortran, dtype = _header(file)
    array = ArrayFile(path, name, shape, dtype)
    if fortran and len(shape) > 1:
        raise UserError(f"dataset.root: {array} is in Fortran's order; save numpy.ascontiguousarray of it")
    return array


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the format")
    return _HEADERS[version](file)


@contextmanager
def _opened(path: Path, name: str | None) -> Iterator[IO[bytes]]:
    if name is None:
        with open(path, "rb") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        yield file


def _exactly(file: IO[bytes], size: int) -> bytes | None:
    """So many bytes, which a compressed file gives in parts; None where there are not so many."""
    try:
        content = file.read(size)
    except (EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return content if len(content) == size else None
