"""A prepared data set: one array of items, their labels, what tells it from others, the way to a model and back."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ddpm_cli.errors import UserError
from ddpm_cli.media.arrays import from_int16
from ddpm_cli.media.base import Medium
from ddpm_cli.media.images import Images, from_uint8

FORMAT = 1  # of prepared sets; raise it when the same settings would give other pixels


class Items(Protocol):
    """What a set's items are, (N, *item_shape): a Tensor, or what gives its rows as one."""

    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def shape(self) -> torch.Size: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Tensor: ...
    def index_select(self, dim: int, index: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Store:
    """Items decoded once: in memory, or memory-mapped read-only (then never write into `items`); or on demand."""

    items: Items  # (N, *item_shape); what its numbers mean: see to_model
    labels: Tensor | None  # (N,) int64 in 0..num_classes - 1
    class_names: tuple[str, ...]  # empty without labels
    name: str
    fingerprint: str  # equal for equal content, on every machine
    other: Medium | None = None  # what the items are outside the model, where that is not uint8 images

    def __post_init__(self) -> None:
        if self.items.dtype not in (torch.uint8, torch.int16) and not self.items.dtype.is_floating_point:
            raise UserError(f"{self.name}: items must be uint8, int16 or floating point, got {self.items.dtype}")
        if len(self.items) == 0:
            raise UserError(f"{self.name} holds no items; choose another dataset.root or dataset.split")
        if (self.labels is None) != (not self.class_names):
            raise UserError(f"{self.name}: labels need class names, and class names labels")
        if self.labels is not None:
            self._check_labels(self.labels)

    def _check_labels(self, labels: Tensor) -> None:
        if labels.dtype != torch.int64 or labels.shape != (len(self),):
            raise UserError(
                f"{self.name}: labels must be int64 of shape ({len(self)},), got {labels.dtype} {tuple(labels.shape)}"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise UserError(f"{self.name}: labels must lie in 0..{self.num_classes - 1}, found {low}..{high}")

    def __len__(self) -> int:
        return len(self.items)

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one item: (C, H, W) for images, (C, L) for sound."""
        return tuple(self.items.shape[1:])

    @property
    def medium(self) -> Medium:
        """What the items are outside the model."""
        return Images(self.item_shape) if self.other is None else self.other

    @property
    def num_classes(self) -> int:
        """0 for an unlabelled set."""
        return len(self.class_names)

    def to_model(self, items: Tensor) -> Tensor:
        """Items of the store's dtype -> float32 in [-1, 1], on the items' device: all of uint8 or int16 is that range;
        floating point lies in it already."""
        if items.dtype == torch.uint8:
            return from_uint8(items)
        return from_int16(items) if items.dtype == torch.int16 else items.float()

    def to_file(self, items: Tensor) -> Tensor:
        """Items -> what their medium's files hold."""
        return items if self.other is None else self.other.to_file(self.to_model(items))


def fingerprint(key: dict[str, Any]) -> str:
    """16 hex digits that are a function of the key (plain values) and of FORMAT.

    They name prepared folders and stand in checkpoints: what a set puts into its key must never change its form.
    """
    text = json.dumps({"format": FORMAT, **key}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
