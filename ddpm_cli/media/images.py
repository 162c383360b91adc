"""Images: uint8 pixels, PNG files, shown as they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ddpm_cli.media import extensions as names
from ddpm_cli.media.base import DecodeError, Medium, files_of
from ddpm_cli.media.image_files import decode
from ddpm_cli.system.files import replacing

_LARGEST = 64  # pixels a side, for a classifier


@dataclass(frozen=True)
class Images(Medium):
    item_shape: tuple[int, ...]  # (C, H, W), C 1 or 3 wherever they are shown

    one, many, suffix, extensions = "image", "images", ".png", names.IMAGES
    file_dtype = torch.uint8

    @property
    def file_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.item_shape

    def to_file(self, x: Tensor) -> Tensor:
        return ((x.float() + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)

    def to_model(self, items: Tensor) -> Tensor:
        return from_uint8(items)

    def save(self, item: Tensor, path: Path) -> Path:
        return save_png(to_image(item), path)

    def load(self, path: Path) -> Tensor:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image))
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)

    def read(self, file: Path) -> Tensor:
        return self._read(file, self.item_shape[0])

    def pictures(self, items: Tensor) -> Tensor:
        return items

    def track(self, items: Tensor) -> None:
        return None

    @property
    def classifier_input(self) -> str:  # type: ignore[override]
        return squared_in_words(self.item_shape)

    def to_classifier(self, items: Tensor) -> Tensor:
        return squared(items.float() / 127.5 - 1)

    def arrays(self, items: Tensor) -> Mapping[str, np.ndarray]:
        return {"images": np.moveaxis(items.cpu().numpy(), 1, -1)}  # (N, H, W, C), as evaluation programs read them

    def masks(self, edit: Mapping[str, Any]) -> Tensor:
        """(m, 1, H, W), true where the mask is white."""
        if edit.get("gap") is not None or edit.get("mask") is None:
            raise ValueError("edit.mask: name a picture that is white where the images are to be made anew")
        files = files_of(edit["mask"], "edit.mask", self)
        masks = torch.stack([self._mask(file) for file in files]) > 127
        if not masks.flatten(1).any(1).all():
            raise ValueError(f"edit.mask={edit['mask']}: nothing in it is white, so nothing would be made anew")
        return masks

    def without(self, item: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, torch.full_like(item, 128), item)

    def _mask(self, file: Path) -> Tensor:
        try:
            return self._read(file, 1)
        except DecodeError as error:
            raise ValueError(f"edit.mask: {file}: {error}") from error

    def _read(self, file: Path, channels: int) -> Tensor:
        return torch.tensor(decode(file, channels, self.item_shape[1:]))


def squared(x: Tensor) -> Tensor:
    """(B, C, H, W) as a small classifier takes them: squares of at most 64 x 64, so that they can be turned."""
    side = _side(x.shape)
    if x.shape[-2:] == (side, side):
        return x
    return F.interpolate(x, (side, side), mode="bilinear", antialias=True)


def squared_in_words(shape: tuple[int, ...]) -> str:
    """What `squared` does to images of this shape."""
    side = _side(shape)
    return "none" if shape[-2:] == (side, side) else f"bilinear, antialiased, to {side}"


def _side(shape: tuple[int, ...]) -> int:
    return min(_LARGEST, max(shape[-2:]))


def from_uint8(items: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]: x / 127.5 - 1 with one rounding, symmetric, and the same bits on every device."""
    return items.float().sub_(127.5).mul_(1 / 127.5)


def to_image(item: Tensor) -> Image.Image:
    """An image of its own pixels from uint8 (C, H, W), C = 1 or 3."""
    array = item.cpu().numpy()
    return Image.fromarray(array[0] if array.shape[0] == 1 else np.moveaxis(array, 0, -1))


def save_png(picture: Image.Image, path: Path) -> Path:
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")
    return path
