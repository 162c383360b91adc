"""What every extractor offers, and the one way in which images go through its network."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.build.instantiate import make_asking
from ddpm_cli.data.store import Store
from ddpm_cli.errors import UserError

_IMAGES_AT_ONCE = 64  # always, see NetworkFeatures


@dataclass(frozen=True)
class Extracted:
    """Features (B, D) float32, class probabilities (B, K) float32 of extractors that have classes, and the labels (B,)
    int64 that the images were drawn for, where they were; on the CPU."""

    features: Tensor
    probabilities: Tensor | None
    labels: Tensor | None = None


class Features(Protocol):
    """An extractor. An image's features do not depend on which others are in the batch."""

    name: str
    sha256: str  # of the weights
    resize: str  # how an image is brought to the network's size, in words
    num_features: int
    num_classes: int | None  # None: no probabilities

    def __call__(self, images: Tensor) -> Extracted:
        """Items (B, *file_shape) as their files hold them, on any device."""

    def describe(self) -> dict[str, Any]:
        """What stands beside a number, as plain values."""


@dataclass(frozen=True)
class NetworkFeatures:
    """The extractor whose network takes 64 images or sounds on its device to Extracted.

    Batches are always of 64, filled up where need be, since the last bits of a convolution depend on the batch's size;
    and in full float32, so that a GPU's are a CPU's to rounding.
    """

    name: str
    sha256: str
    resize: str
    num_features: int
    num_classes: int | None
    device: torch.device
    network: Callable[[Tensor], Extracted]
    told: Mapping[str, Any] = field(default_factory=dict)  # of this kind of extractor

    def __call__(self, images: Tensor) -> Extracted:
        with torch.inference_mode(), _full_float32():
            parts = [self._some(rows.to(self.device)) for rows in images.split(_IMAGES_AT_ONCE)]
        probabilities = [part.probabilities for part in parts if part.probabilities is not None]
        return Extracted(
            torch.cat([part.features for part in parts]), torch.cat(probabilities) if probabilities else None
        )

    def describe(self) -> dict[str, Any]:
        plain = {"name": self.name, "sha256": self.sha256, "resize": self.resize, "num_features": self.num_features}
        return {**plain, "num_classes": self.num_classes, **self.told}

    def _some(self, images: Tensor) -> Extracted:
        count = len(images)
        found = self.network(torch.cat([images, images[:1].expand(_IMAGES_AT_ONCE - count, *images.shape[1:])]))
        probabilities = None if found.probabilities is None else found.probabilities[:count].float().cpu()
        return Extracted(found.features[:count].float().cpu(), probabilities)


def build_features(
    node: dict[str, Any], store: Store, device: torch.device, trust: list[str], cache_dir: Path
) -> Features:
    """The extractor that a configuration's `features` names, ready to call. UserError or WorldError says what it lacks.

    store: the training data, which some learn from. cache_dir: where what they learn is kept.
    """
    if store.medium.one == "image" and len(store.item_shape) != 3:
        raise UserError(f"features are of images (C x H x W), and {store.name} holds {store.item_shape}")
    return make_asking("features", node, trust, store=store, device=device, cache_dir=cache_dir)


def check_images(store: Store, name: str) -> None:
    """UserError for features that are of images alone."""
    if not are_pictures(store):
        what = store.medium.many if store.medium.one != "image" else f"{store.items.dtype} {store.item_shape}"
        raise UserError(
            f"features={name} are of images of 8 bits, grey or RGB, and {store.name} holds {what}; "
            "choose features=classifier"
        )


def are_pictures(store: Store) -> bool:
    """Whether its files hold what networks of others take: uint8, grey or RGB."""
    medium = store.medium
    return medium.one == "image" and store.items.dtype == torch.uint8 and store.item_shape[0] in (1, 3)


def sha256_of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Of names, shapes and bytes."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def rgb(images: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) -> (B, 3, H, W): grey is repeated."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
