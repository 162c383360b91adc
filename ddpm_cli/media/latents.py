"""What the model sees of an image where a frozen autoencoder stands between them (Rombach et al. 2022): latents."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_cli.errors import UserError
from ddpm_cli.media.base import Medium

_PIXELS_AT_ONCE = 2**18  # that the autoencoder has in hand: 256 images of 32 x 32, 4 of 256 x 256


class Autoencoder(Protocol):
    """An nn.Module, frozen."""

    def encode(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, latent_channels, H / factor, W / factor), the mean of q(z | x)."""
        ...

    def decode(self, z: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Latents:
    """Images as the means of an autoencoder's q(z | x), times scale_factor (Rombach et al. 2022, Appendix G).

    scale_factor: one number, or one for each channel, that brings the latents to a standard deviation of 1. factor:
    pixels to a latent, along a side. sha256: of the autoencoder. network: gives it.
    """

    scale_factor: float | Sequence[float] | str
    latent_channels: int
    factor: int
    sha256: str
    network: Callable[[], nn.Module]

    def __post_init__(self) -> None:
        scale = self.scale_factor
        if isinstance(scale, list | tuple) and len(scale) != self.latent_channels:
            raise UserError(
                f"representation.scale_factor={list(scale)}: one number is needed for each of the "
                f"{self.latent_channels} channels of the latents, or one for all"
            )

    @property
    def channels(self) -> int:
        return self.latent_channels

    def shape(self, image: Sequence[int]) -> tuple[int, ...]:
        """Of the latents of an image (C, H, W)."""
        _, height, width = image
        if height % self.factor or width % self.factor:
            raise UserError(
                f"dataset.image_size: the autoencoder makes images {self.factor} times smaller, and {height}x{width} "
                f"is no multiple of that"
            )
        return (self.latent_channels, height // self.factor, width // self.factor)

    def encode(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, *shape)."""
        return self._in_parts("encode", x, x[0, 0].numel()) * self._scale(x)

    def decode(self, x: Tensor) -> Tensor:
        """(B, *shape) -> (B, C, H, W), in [-1, 1] but for rounding."""
        return self._in_parts("decode", x.float() / self._scale(x), x[0, 0].numel() * self.factor**2)

    def span(self, mask: Tensor) -> Tensor:
        """Which latents stand for any of the pixels of a mask: bool (m, 1, H, W) -> (m, 1, H / factor, W / factor)."""
        return F.max_pool2d(mask.float(), self.factor) > 0

    def pixels(self, mask: Tensor) -> Tensor:
        """The pixels that latents stand for, in the two last dimensions."""
        return mask.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)

    def _scale(self, like: Tensor) -> Tensor:
        assert not isinstance(self.scale_factor, str), "not measured yet"
        return torch.tensor(self.scale_factor, dtype=torch.float32, device=like.device).view(-1, 1, 1)

    @torch.no_grad()
    def _in_parts(self, way: str, x: Tensor, pixels: int) -> Tensor:
        network: Any = self.network().to(x.device)
        call = {"encode": network.encode, "decode": network.decode}[way]
        return torch.cat([call(part) for part in x.float().split(max(1, _PIXELS_AT_ONCE // pixels))])


@dataclass(frozen=True)
class LatentImages(Medium):
    """Images in files, latents in the model."""

    images: Medium
    latents: Latents

    one, many = "image", "images"
    limit = math.inf  # latents have no range

    @property
    def outside(self) -> Medium:
        return self.images

    @property
    def suffix(self) -> str:  # type: ignore[override]
        return self.images.suffix

    @property
    def extensions(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.images.extensions

    @property
    def item_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.latents.shape(self.images.item_shape)

    @property
    def file_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.images.file_shape

    @property
    def file_dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.images.file_dtype

    @property
    def classifier_input(self) -> str:  # type: ignore[override]
        return self.images.classifier_input

    def to_file(self, x: Tensor) -> Tensor:
        return self.images.to_file(self.latents.decode(x))

    def to_model(self, items: Tensor) -> Tensor:
        return self.latents.encode(self.images.to_model(items))

    def save(self, item: Tensor, path: Path) -> Path:
        return self.images.save(item, path)

    def load(self, path: Path) -> Tensor:
        return self.images.load(path)

    def read(self, file: Path) -> Tensor:
        return self.images.read(file)

    def pictures(self, items: Tensor) -> Tensor:
        return self.images.pictures(items)

    def track(self, items: Tensor) -> None:
        return None

    def to_classifier(self, items: Tensor) -> Tensor:
        return self.images.to_classifier(items)

    def arrays(self, items: Tensor) -> Mapping[str, np.ndarray]:
        return self.images.arrays(items)

    def masks(self, edit: Mapping[str, Any]) -> Tensor:
        """Every latent that stands for a pixel to be made anew: (m, 1, H / factor, W / factor)."""
        return self.latents.span(self.images.masks(edit))

    def without(self, item: Tensor, mask: Tensor) -> Tensor:
        return self.images.without(item, self.latents.pixels(mask))
