"""Where the images come from that are measured: drawn from a checkpoint, or found in files."""

import hashlib
import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.data.prepare.pixels import fit
from ddpm_cli.errors import UserError
from ddpm_cli.media.base import DecodeError, files_below
from ddpm_cli.media.extensions import IMAGES
from ddpm_cli.media.image_files import decode, shape_of
from ddpm_cli.sampling.pipeline import SamplingPipeline

log = logging.getLogger("ddpm_cli")
_LOOKED_AT = 100  # files whose size is told


class Source(Protocol):
    """Images by number: image k is the same whenever it is asked for."""

    def images(self, indices: Sequence[int], after_step: Callable[[], None]) -> tuple[Tensor, Tensor | None, float]:
        """As files hold them, the labels (B,) they were drawn for, and how many network evaluations each took.

        after_step: called as often as can be.
        """
        ...


@dataclass(frozen=True)
class Drawn:
    """Draws them as ddpm-sample does."""

    pipeline: SamplingPipeline

    @torch.inference_mode()
    def images(self, indices: Sequence[int], after_step: Callable[[], None]) -> tuple[Tensor, Tensor | None, float]:
        rows = 0

        def count(_: Any, args: tuple[Tensor, ...]) -> None:
            nonlocal rows
            rows += len(args[0])

        models = [self.pipeline.trained, *([self.pipeline.guide] if self.pipeline.guide is not None else [])]
        # of the denoiser, whose network may be compiled
        hooks = [trained.denoiser.register_forward_pre_hook(count) for trained in models]
        try:
            for step in self.pipeline.walk(indices):  # noqa: B007 the last one's x are the images
                after_step()
        finally:
            for hook in hooks:
                hook.remove()
        return self.pipeline.medium.to_file(step.x), self.pipeline.classes_of(indices), rows / len(indices)


@dataclass(frozen=True)
class Found:
    """Reads them from files, or has them in memory, and brings them to the reference's (C, H, W)."""

    path: Path
    images_of: Sequence[Path] | Tensor
    sizes: set[tuple[int, ...]]  # (C, H, W) as they are, of the first ones
    sha256: str  # of what they are made of
    shape: tuple[int, ...] = ()  # the reference's
    labels: Tensor | None = None  # (N,) int64, that they were drawn for

    def __len__(self) -> int:
        return len(self.images_of)

    def brought_to(self, shape: tuple[int, ...]) -> "Found":
        if shape[1] != shape[2]:
            raise UserError(f"images={self.path}: the reference's are {_size(shape)}, and files are read as squares")
        if others := sorted(self.sizes - {shape}):
            told = ", ".join(map(_size, others[:3]))
            log.warning(
                "images of %s are brought to the reference's %s, which changes their numbers", told, _size(shape)
            )
        return replace(self, shape=shape)

    def images(self, indices: Sequence[int], after_step: Callable[[], None]) -> tuple[Tensor, Tensor | None, float]:
        channels, side, _ = self.shape
        if isinstance(self.images_of, Tensor):
            return fit(self.images_of[list(indices)], channels, side), self._labels_of(indices), 0.0
        images = []
        for k in indices:
            try:
                images.append(torch.from_numpy(decode(self.images_of[k], channels, side)))
            except DecodeError as error:
                raise UserError(f"images: {self.images_of[k]}: {error}; repair or remove it") from error
        return torch.stack(images), self._labels_of(indices), 0.0

    def _labels_of(self, indices: Sequence[int]) -> Tensor | None:
        return None if self.labels is None else self.labels[list(indices)]


def find_images(path: Path) -> Found:
    """The images of a .npz file, of a folder that ddpm-sample made, or of any folder with those below it, by name."""
    if path.is_dir() and (path / "samples.npz").exists():
        path = path / "samples.npz"
    if not path.is_dir():
        array, labels = _of_archive(path)
        sha256 = hashlib.sha256(array.numpy().tobytes()).hexdigest()
        return Found(path, array, {tuple(array.shape[1:])}, sha256, labels=labels)
    files = files_below(path, IMAGES)
    if not files:
        raise UserError(f"images={path}: holds no image files")
    states = [(str(file.relative_to(path)), (s := file.stat()).st_size, s.st_mtime_ns) for file in files]
    sizes = set(map(_size_of, files[:_LOOKED_AT]))
    return Found(path, files, sizes, hashlib.sha256(repr(states).encode()).hexdigest())


def _of_archive(path: Path) -> tuple[Tensor, Tensor | None]:
    """(N, C, H, W) uint8 of an archive's `images`, which are (N, H, W, C) as ddpm-sample and others write them, and its
    `labels`, where it has as many."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            name = "images" if "images" in arrays.files else arrays.files[0]  # arr_0, as ADM's evaluator has it
            array = arrays[name]
            labels = arrays["labels"] if "labels" in arrays.files else None
    except (OSError, ValueError, EOFError, IndexError, TypeError, BadZipFile, zlib.error) as error:  # TypeError: .npy
        reason = "it holds no arrays" if "pickle" in str(error) else error  # numpy would have one allow them
        raise UserError(f"images={path} is no folder of images, nor an .npz archive of them ({reason})") from error
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] not in (1, 3) or len(array) == 0:
        raise UserError(
            f"images={path}: its images must be uint8 of shape (N, H, W, 1 or 3), got {array.dtype} {array.shape}"
        )
    known = labels is not None and labels.shape == array.shape[:1] and labels.dtype.kind in "iu"
    images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))
    return images, torch.from_numpy(labels.astype(np.int64)) if labels is not None and known else None


def _size_of(file: Path) -> tuple[int, ...]:
    try:
        return shape_of(file)
    except DecodeError as error:
        raise UserError(f"images: {file}: {error}; repair or remove it") from error


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
