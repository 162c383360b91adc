"""Images of any number of channels and kind of number: files in the data's own range, shown by their channels."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.errors import UserError
from ddpm_cli.media import extensions as names
from ddpm_cli.media.base import DecodeError, Medium
from ddpm_cli.media.image_files import decode
from ddpm_cli.media.images import Images, squared, squared_in_words
from ddpm_cli.system.files import replacing

FULL = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}  # the range of all numbers of a kind
# int32 for uint16, of which torch has little more than the name
_FILE_DTYPES = {"uint8": torch.uint8, "uint16": torch.int32, "float32": torch.float32}
Range = tuple[tuple[float, float], ...]  # what -1 and 1 stand for: one for all channels, or one for each


def medium_of(shape: tuple[int, ...], dtype: str = "uint8", range: Sequence[Any] | None = None) -> Medium:
    """Of images (C, H, W) whose files hold `dtype`. range: [low, high] that the model sees as [-1, 1], or as many as
    channels; null: all numbers of that kind."""
    if range is None and dtype not in FULL:
        raise UserError(f"dataset.dtype={dtype} goes with a dataset.range; images in files are uint8 or uint16")
    pairs = pairs_of(FULL[dtype] if range is None else range)
    if dtype == "uint8" and pairs == (FULL["uint8"],) and shape[0] in (1, 3):
        return Images(shape)
    return Arrays(shape, dtype, pairs)


def pairs_of(range: Sequence[Any]) -> Range:
    """[low, high] or a list of such as tuples."""
    pairs = range if isinstance(range[0], Sequence) else [range]
    return tuple((float(low), float(high)) for low, high in pairs)


@dataclass(frozen=True)
class Arrays(Medium):
    item_shape: tuple[int, ...]  # (C, H, W)
    dtype: str  # of files: uint8, uint16, float32
    range: Range

    one, many = "image", "images"
    classifier_input = property(lambda self: squared_in_words(self.item_shape))

    @property
    def file_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.item_shape

    @property
    def file_dtype(self) -> torch.dtype:  # type: ignore[override]
        return _FILE_DTYPES[self.dtype]

    @property
    def suffix(self) -> str:  # type: ignore[override]
        """Pictures where PNG can hold them, else .npy (H, W, C)."""
        return ".png" if self.dtype in FULL and self.item_shape[0] in (1, 3) else ".npy"

    @property
    def extensions(self) -> tuple[str, ...]:  # type: ignore[override]
        return names.IMAGES if self.suffix == ".png" else (".npy",)

    def to_file(self, x: Tensor) -> Tensor:
        low, high = self._ends(x)
        values = torch.minimum(torch.maximum(low + (x.float() + 1) * ((high - low) / 2), low), high)
        return (values.round() if self.dtype in FULL else values).to(self.file_dtype)

    def to_model(self, items: Tensor) -> Tensor:
        low, high = self._ends(items)
        return (items.float() - low) * (2 / (high - low)) - 1

    def save(self, item: Tensor, path: Path) -> Path:
        pixels = np.moveaxis(item.cpu().numpy(), 0, -1)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            if self.suffix == ".png":
                file.write(png(pixels.astype(self.dtype)))
            else:
                np.save(file, pixels)
        return path

    def load(self, path: Path) -> Tensor:
        if not path.exists():
            raise FileNotFoundError(path)
        return self.read(path)

    def read(self, file: Path) -> Tensor:
        if self.suffix == ".png":
            pixels = decode(file, self.item_shape[0], self.item_shape[1:], self.dtype)
        else:
            pixels = self._of_npy(file)
        return torch.from_numpy(pixels.astype(np.int32 if self.dtype == "uint16" else self.dtype))

    def pictures(self, items: Tensor) -> Tensor:
        """In grey or RGB where there are as many channels, else all channels side by side."""
        pixels = ((self.to_model(items) + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
        return pixels if pixels.shape[1] in (1, 3) else pixels.movedim(1, 2).flatten(2)[:, None]

    def track(self, items: Tensor) -> None:
        return None

    def to_classifier(self, items: Tensor) -> Tensor:
        return squared(self.to_model(items))

    def arrays(self, items: Tensor) -> Mapping[str, np.ndarray]:
        return {"images": np.moveaxis(items.cpu().numpy(), 1, -1).astype(self.dtype)}

    def masks(self, edit: Mapping[str, Any]) -> Tensor:
        return Images((1, *self.item_shape[1:])).masks(edit)

    def without(self, item: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, self.to_file(torch.zeros(self.item_shape))[:, :1, :1].to(item.device), item)

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Low and high, each (1 or C, 1, 1)."""
        ends = torch.tensor(self.range, device=like.device).T
        return ends[0].view(-1, 1, 1), ends[1].view(-1, 1, 1)

    def _of_npy(self, file: Path) -> np.ndarray:
        try:
            pixels = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DecodeError(str(error)) from error
        channels, height, width = self.item_shape
        if pixels.shape not in ((height, width, channels), (height, width)[: 2 if channels == 1 else 0]):
            raise DecodeError(f"must be of shape {(height, width, channels)}, has {pixels.shape}")
        return np.moveaxis(pixels.reshape(height, width, channels), -1, 0)


def from_int16(items: Tensor) -> Tensor:
    """int16 -> float32 in [-1, 1]: all numbers of that kind, symmetric, with one rounding."""
    return items.float().add_(0.5).mul_(1 / 32767.5)


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 or uint16 (H, W, 1 or 3); of 16 bits Pillow writes none in colour."""
    height, width, channels = pixels.shape
    rows = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(">"))).reshape(height, -1).view(np.uint8)
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), rows], 1)  # a row's first byte: not filtered
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b""))
    parts = [struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
