"""Arrays of images brought to the channels and the size a model is to see."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

# ITU-R 601-2, in 16-bit fixed point as Pillow's convert("L") has it
_LUMA = (19595, 38470, 7471)
_PIXELS_AT_ONCE = 2**20  # drawing and resizing take several times the memory of their result, as float32


def pieces(num_images: int, image_size: int) -> Iterator[slice]:
    """Runs of images small enough to be worked on at once, one after the other."""
    rows = max(1, _PIXELS_AT_ONCE // image_size**2)
    return (slice(start, min(start + rows, num_images)) for start in range(0, num_images, rows))


def fit(images: Tensor, channels: int, image_size: int) -> Tensor:
    """(N, C, H, W) uint8, C 1 or 3 -> (N, channels, image_size, image_size) uint8.

    Grey is repeated to RGB, RGB becomes luma; bicubic with antialiasing, as Pillow's BICUBIC.
    """
    fitted = torch.empty(len(images), channels, image_size, image_size, dtype=torch.uint8)
    for rows in pieces(len(images), max(image_size, *images.shape[-2:])):
        some = _grey(images[rows]) if channels == 1 else images[rows]
        fitted[rows] = _resized(some, image_size)
    return fitted


def covering(images: Tensor, height: int, width: int) -> Tensor:
    """(N, C, H, W) float -> (N, C, height, width): the largest centred part of that aspect, resampled."""
    old_h, old_w = images.shape[-2:]
    if (old_h, old_w) == (height, width):
        return images
    scale = min(old_h / height, old_w / width)
    part_h, part_w = max(1, round(scale * height)), max(1, round(scale * width))
    top, left = (old_h - part_h) // 2, (old_w - part_w) // 2
    part = images[..., top : top + part_h, left : left + part_w]
    return torch.nn.functional.interpolate(part, (height, width), mode="bicubic", antialias=True)


def as_stored(pixels: np.ndarray) -> np.ndarray:
    """uint16 as a Store has them, less 32768 in int16, of which torch has all it needs; others as they are."""
    return (pixels.astype(np.int32) - 32768).astype(np.int16) if pixels.dtype == np.uint16 else pixels


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(_LUMA, dtype=torch.int64).view(1, 3, 1, 1)
    return ((images.long() * weights).sum(1, keepdim=True) + 0x8000 >> 16).to(torch.uint8)


def _resized(images: Tensor, image_size: int) -> Tensor:
    size = (image_size, image_size)
    if images.shape[-2:] == size:
        return images
    resized = torch.nn.functional.interpolate(images.float(), size, mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)  # bicubic overshoots at edges
