"""What an image is drawn from beside noise and class: a condition.

In come the images of a set, and what lies beside each of them in another file; out goes what a network is shown: more
channels of its input, as of SR3 (Saharia et al. 2021, super-resolution) and Palette (Saharia et al. 2022, colouring and
inpainting), or a vector that joins the time. It is made of the image as it is trained on, mirrored and augmented, and
is a function of that and of the image's place alone.

Two steps, so that a sample can be drawn from files as from images of the set: `given` is what a file would hold, and
`shown` what the network sees of it.
"""

import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.data.image_folder import paired_images
from ddpm_cli.data.loading.batches import Batches
from ddpm_cli.data.split import in_split
from ddpm_cli.data.store import Store, fingerprint
from ddpm_cli.errors import UserError
from ddpm_cli.seeding import mix, uniform

_HOLES = 0x0DA7A003  # the stream of this module
_BOX = 4  # random numbers of a hole: height, width, place
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as files are made grey by
SHOWN, VECTOR = "condition", "vector"  # keys of a denoiser's cond


class Condition(Protocol):
    """What every condition offers; one that derives from it states what differs from these defaults."""

    vector: bool = False  # (B, D) numbers that join the time, not (B, K, H, W) channels
    masked: bool = False  # has holes, which are a picture of their own

    def given_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(C, H, W) of what is given for an item of `shape`, or (D,); ValueError where there is none for such items."""
        ...

    def num_shown(self, shape: Sequence[int]) -> int:
        """Channels that the network is shown beside those of an item of `shape`, or numbers of a vector."""
        return self.given_shape(shape)[0]

    def beside(self, dataset: Mapping[str, Any], store: Store) -> Store | None:
        """What lies beside each item of `store`, which the configuration `dataset` made; None: nothing need."""
        return None

    def given(self, x_0: Tensor, beside: Tensor | None) -> Tensor:
        """x_0: (B, *shape) in [-1, 1], beside: its rows of that store -> (B, *given_shape)."""
        ...

    def shown(self, given: Tensor, holes: Tensor | None) -> Tensor:
        """(B, *given_shape), holes: (B, 1, H, W) bool where it is `masked` -> (B, num_shown, H, W), or (B, D)."""
        return given

    def holes(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        """u: (B, 4) in [0, 1) -> the holes of items of `shape`."""
        raise NotImplementedError


@dataclass(frozen=True)
class LowResolution(Condition):
    """The image with each square of factor x factor pixels averaged, enlarged again bicubically (SR3, Section 2.4)."""

    factor: int = 2

    def given_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        channels, *size = shape
        if any(side % self.factor for side in size):
            sides = "x".join(map(str, size))
            raise ValueError(f"condition.factor={self.factor} must divide the sides of the images, {sides}")
        return (channels, *(side // self.factor for side in size))

    def given(self, x_0: Tensor, beside: Tensor | None) -> Tensor:
        return F.avg_pool2d(x_0, self.factor)

    def shown(self, given: Tensor, holes: Tensor | None) -> Tensor:
        return F.interpolate(given, scale_factor=self.factor, mode="bicubic")


@dataclass(frozen=True)
class Grey(Condition):
    """The image in grey, for a model that colours it."""

    def given_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if shape[0] != 3:
            raise ValueError(f"condition=grey is of images in colour, and these have {shape[0]} channel(s)")
        return (1, *shape[1:])

    def given(self, x_0: Tensor, beside: Tensor | None) -> Tensor:
        return (x_0 * x_0.new_tensor(_LUMA).view(-1, 1, 1)).sum(1, keepdim=True)


@dataclass(frozen=True)
class Mask(Condition):
    """The image with a hole, grey in there, and where that is: 1 in a further channel. In training a rectangle of which
    each side is a share of the image's between the two of `share`, anywhere in it.

    Palette has noise in the hole and is trained on the hole alone (Section 3); here every pixel is, known or not.
    """

    share: Sequence[float] = (0.25, 0.75)

    masked = True

    def __post_init__(self) -> None:
        if not self.share[0] <= self.share[1]:
            raise ValueError(f"condition.share must rise, e.g. [0.25, 0.75], got {[*self.share]}")

    def given_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(shape)

    def num_shown(self, shape: Sequence[int]) -> int:
        return shape[0] + 1

    def given(self, x_0: Tensor, beside: Tensor | None) -> Tensor:
        return x_0

    def shown(self, given: Tensor, holes: Tensor | None) -> Tensor:
        assert holes is not None
        return torch.cat([given.masked_fill(holes, 0.0), holes.to(given.dtype)], 1)

    def holes(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        (low, high), inside = self.share, []
        for side, size, place in zip(shape[1:], u[:, :2].T, u[:, 2:].T, strict=True):
            length = ((low + (high - low) * size) * side).round().clamp(1, side)
            start = (place * (side - length + 1)).floor()
            pixel = torch.arange(side, device=u.device)
            inside.append((pixel >= start[:, None]) & (pixel < (start + length)[:, None]))
        rows, columns = inside
        return (rows[:, :, None] & columns[:, None, :])[:, None]


@dataclass(frozen=True)
class Image(Condition):
    """Another image of the same name, from a second folder (or archive) laid out as that of dataset=image_folder."""

    root: str
    channels: int
    cache: str | None = None

    def given_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if self.channels not in (1, 3):
            raise ValueError(f"condition.channels must be 1 (grey) or 3 (RGB), got {self.channels}")
        return (self.channels, *shape[1:])

    def beside(self, dataset: Mapping[str, Any], store: Store) -> Store | None:
        return paired_images(dataset, self.root, self.cache, self.channels, len(store))

    def given(self, x_0: Tensor, beside: Tensor | None) -> Tensor:
        assert beside is not None
        return beside


@dataclass(frozen=True)
class Vector(Condition):
    """A row of numbers for each item, out of an .npy file (N, width): of what is trained on in its order, or of the
    whole set, train and test; the test split has vectors in the second case alone."""

    path: str
    width: int

    vector = True

    def given_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (self.width,)

    def beside(self, dataset: Mapping[str, Any], store: Store) -> Store | None:
        rows = read_vectors(Path(self.path), "condition.path")
        if rows.shape[1] != self.width:
            raise UserError(f"condition.path: {self.path} has rows of {rows.shape[1]} numbers, not of {self.width}")
        found, split = rows, dataset.get("split")
        if split == "test" or (split == "train" and len(rows) != len(store)):  # as sets are cut that come as one
            found = rows[torch.tensor(in_split(len(rows), split))]
        if len(found) != len(store):
            raise UserError(
                f"condition.path: {self.path} holds numbers of the shape {tuple(rows.shape)}, and {store.name} has "
                f"{len(store)} items; give one row for each"
            )
        sha = hashlib.sha256(found.numpy().tobytes()).hexdigest()
        return Store(found, None, (), f"vectors of {store.name}", fingerprint({"vectors": sha}))

    def given(self, x_0: Tensor, beside: Tensor | None) -> Tensor:
        assert beside is not None
        return beside


def read_vectors(path: Path, key: str) -> Tensor:
    """(N, D) float32 of an .npy file that holds that, or one row of it."""
    try:
        rows = np.load(path, allow_pickle=False)
        numbers = torch.from_numpy(np.atleast_2d(rows).astype(np.float32))
    except (OSError, EOFError, ValueError, TypeError, BadZipFile, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no .npy file of numbers"
        raise UserError(f"{key}: cannot read numbers from {path} ({reason}); save an .npy file (N, D)") from error
    if numbers.ndim != 2 or not numbers.numel():
        raise UserError(f"{key}: {path} must hold numbers of the shape (N, D), has {tuple(rows.shape)}")
    if not bool(numbers.isfinite().all()):
        raise UserError(f"{key}: {path} holds numbers that are not finite")
    return numbers


@dataclass(frozen=True)
class Conditions:
    """What the items of a set are drawn from."""

    condition: Condition
    store: Store
    beside: Store | None

    @classmethod
    def of(cls, condition: Condition, dataset: Mapping[str, Any], store: Store) -> "Conditions":
        return cls(condition, store, condition.beside(dataset, store))

    def given(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is given for these rows of the set, and the holes in it: the same whenever it is asked for."""
        x_0 = self.store.to_model(self.store.items[rows])
        beside = None if self.beside is None else self.beside.to_model(self.beside.items[rows])
        return self.condition.given(x_0, beside), _holes(self.condition, mix(0, _HOLES), rows, x_0)

    def cond(self, rows: Tensor) -> dict[str, Tensor]:
        """What the network is told of these rows."""
        return as_cond(self.condition, *self.given(rows))

    def in_batches(self, batch_size: int, seed: int, flip: bool, device: torch.device) -> "InBatches":
        """Those of the steps of a run, in the order of its Batches."""
        if self.beside is None:
            return InBatches(self.condition, batch_size, seed, None)
        batches = Batches(self.beside, batch_size, seed, flip and not self.condition.vector, device)
        return InBatches(self.condition, batch_size, seed, batches.batch, self.beside.fingerprint)


@dataclass(frozen=True)
class InBatches:
    """What the loader gives beside images and labels: for the rows of a step's batch, in two steps, since what lies
    beside an image is augmented with it."""

    condition: Condition
    batch_size: int
    seed: int
    batch: Callable[[int, int, int], tuple[Tensor, Tensor | None]] | None  # of what lies beside
    fingerprint: str | None = None  # of that

    def beside(self, step: int, start: int, stop: int) -> Tensor | None:
        """(B, K, H, W) mirrored as the images are, or (B, D)."""
        return None if self.batch is None else self.batch(step, start, stop)[0]

    def cond(self, x_0: Tensor, beside: Tensor | None, step: int, rows: slice) -> dict[str, Tensor]:
        """What the network is told of x_0, rows of the step's batch."""
        places = step * self.batch_size + torch.arange(rows.start, rows.stop, rows.step or 1)
        holes = _holes(self.condition, mix(self.seed, _HOLES), places, x_0)
        return as_cond(self.condition, self.condition.given(x_0, beside), holes)


def as_cond(condition: Condition, given: Tensor, holes: Tensor | None) -> dict[str, Tensor]:
    """By the key under which a denoiser's cond has it."""
    return {VECTOR if condition.vector else SHOWN: condition.shown(given, holes)}


def _holes(condition: Condition, stream: int, places: Tensor, x_0: Tensor) -> Tensor | None:
    if not condition.masked:
        return None
    u = torch.from_numpy(uniform(stream, places.cpu().numpy()[:, None] * _BOX + np.arange(_BOX)))
    return condition.holes(u.float(), tuple(x_0.shape[1:])).to(x_0.device)
