"""A prepared data set: one array of items, their labels, and how they become a model's numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.errors import UserError


@dataclass(frozen=True, eq=False)
class Store:
    """Items decoded once: in memory, or memory-mapped read-only (then never write into `items`)."""

    items: Tensor  # (N, *item_shape); uint8 for images; floating point is taken to lie in [-1, 1] already
    labels: Tensor | None  # (N,) int64 in 0..num_classes - 1
    class_names: tuple[str, ...]  # empty without labels
    name: str
    fingerprint: str  # hex; equal for equal content and settings

    def __post_init__(self) -> None:
        if self.items.dtype != torch.uint8 and not self.items.dtype.is_floating_point:
            raise UserError(f"{self.name}: items must be uint8 or floating point, got {self.items.dtype}")
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
    def num_classes(self) -> int:
        """0 for an unlabelled set."""
        return len(self.class_names)

    def to_model(self, items: Tensor) -> Tensor:
        """Items of the store's dtype -> float32 in [-1, 1], on the items' device."""
        if items.dtype == torch.uint8:
            # x / 127.5 - 1 with one rounding: exactly symmetric, and the same bits on every device
            return items.float().sub_(127.5).mul_(1 / 127.5)
        return items.float()


def to_file(x: Tensor) -> Tensor:
    """The model's numbers, [-1, 1] where they are good -> uint8, rounded and clamped."""
    return ((x.float() + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
