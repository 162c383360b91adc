"""What every medium offers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.media.wav import Track


class DecodeError(ValueError):
    """Why a file gives no item, in words; the caller knows its path."""


class Medium(Protocol):
    """Items outside the model. Below, `items` stands for (B, *file_shape) of file_dtype: a batch as files hold it."""

    one: str  # image, sound
    many: str  # images, sounds: also the folder of the files, and the array in samples.npz
    suffix: str  # of a file
    extensions: tuple[str, ...]  # of files that can be read
    item_shape: tuple[int, ...]  # in the model
    file_shape: tuple[int, ...]
    file_dtype: torch.dtype
    classifier_input: str  # what to_classifier does, in words
    limit: float = 1.0  # how far from 0 what the model draws may lie

    @property
    def outside(self) -> "Medium":
        """The medium whose model sees the files' own numbers: of latents the images, else itself."""
        return self

    def to_file(self, x: Tensor) -> Tensor:
        """(B, *item_shape), in [-1, 1] where it is good -> items, rounded and clamped, on x's device."""
        ...

    def to_model(self, items: Tensor) -> Tensor:
        """items -> (B, *item_shape) float32."""
        ...

    def save(self, item: Tensor, path: Path) -> Path:
        """Writes one item, whole or not at all."""
        ...

    def load(self, path: Path) -> Tensor:
        """What save wrote; FileNotFoundError where it did not."""
        ...

    def read(self, file: Path) -> Tensor:
        """Any file of this kind as one item, cut, scaled or resampled; DecodeError says why it cannot be."""
        ...

    def pictures(self, items: Tensor) -> Tensor:
        """What is shown of each: uint8 (B, 1 or 3, H, W)."""
        ...

    def track(self, items: Tensor) -> Track | None:
        """All of them one after the other, for a medium that is heard."""
        ...

    def to_classifier(self, items: Tensor) -> Tensor:
        """(B, C, H, W) of about [-1, 1], at most 64 x 64: what a small classifier is to tell them apart by."""
        ...

    def arrays(self, items: Tensor) -> Mapping[str, np.ndarray]:
        """As samples.npz holds them, by name."""
        ...

    def masks(self, edit: Mapping[str, Any]) -> Tensor:
        """What of an item an edit's configuration lets be made anew: (m, ...) bool that goes with (B, *item_shape).
        ValueError where it does not say so for this medium."""
        ...

    def without(self, item: Tensor, mask: Tensor) -> Tensor:
        """One item with what is to be made anew taken out, to be shown."""
        ...


def files_below(folder: Path, extensions: Sequence[str]) -> list[Path]:
    """Those whose names end so, in the folder and all below it, by name; hidden ones are left out."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in extensions and not p.name.startswith("."))


def files_of(spec: str, key: str, medium: Medium) -> Sequence[Path]:
    """The file that a setting names, or those of a folder and below it, by name; ValueError where there are none."""
    path = Path(spec).expanduser()
    files = files_below(path, medium.extensions) if path.is_dir() else [path]
    if not files or not path.exists():
        trouble = f"holds no {medium.one} files" if path.exists() else "no such file or folder"
        raise ValueError(f"{key}={spec}: {trouble}")
    return files
