"""Images in an array: of any number of channels, any sides, whole numbers or floats, in an .npy or .npz file."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm_cli.data.checks import check_num_classes
from ddpm_cli.data.prepare.cache import Blocks, cache_folder, prepare
from ddpm_cli.data.prepare.classes import classes_of
from ddpm_cli.data.prepare.listing import counted, tell
from ddpm_cli.data.prepare.npy import ArrayFile, arrays_of
from ddpm_cli.data.prepare.pixels import as_stored, covering
from ddpm_cli.data.split import in_split
from ddpm_cli.data.store import Store, fingerprint
from ddpm_cli.errors import UserError
from ddpm_cli.media.arrays import FULL, Range, medium_of, pairs_of
from ddpm_cli.media.image_files import sides
from ddpm_cli.media.images import Images

log = logging.getLogger("ddpm_cli")

_IMAGES, _LABELS = ("images", "x", "data"), ("labels", "y")  # names in .npz files, where none is given


def arrays(
    *,
    root: str,
    cache: str | None,
    images: str | None,
    labels: str | None,
    layout: str | None,
    split: str,
    channels: int,
    image_size: int | Sequence[int],
    dtype: str,
    range: Sequence[Any],
    num_classes: int | None,
) -> Store:
    """(N, H, W), (N, H, W, C) or (N, C, H, W), prepared into `cache` (null: .prepared beside the file).

    range: what the model sees as -1 and 1, for all channels or a pair for each; what lies outside is brought to its
    ends. `test` is every sixth image, `train` the rest.
    """
    given, pairs = _opened(root, images, layout), pairs_of(range)
    _check(given, channels, dtype, pairs)
    values = _labels(root, labels, len(given))
    numbers, classes = classes_of(values) if values is not None else ([-1] * len(given), ())
    labelled = check_num_classes(num_classes, len(classes), what=root)
    shape = (channels, *sides(image_size))
    chosen = np.array(in_split(len(given), split))
    medium, path = medium_of(shape, dtype, range), Path(root)
    whole = dtype in FULL and pairs == (FULL[dtype],) and given.array.dtype.name == dtype
    key: dict[str, Any] = {"set": "arrays", "file": [(s := path.stat()).st_size, s.st_mtime_ns], "split": split}
    key |= {"images": given.array.name, "layout": given.layout, "shape": shape, "dtype": dtype, "range": pairs}
    tell(logging.INFO, f"{given}, {_told(pairs)}, {counted(len(classes), 'class', 'classes')}")

    def fill() -> Blocks:
        outside = 0
        for start, block in given.blocks():
            _check_finite(block, start, given.array)
            rows = np.flatnonzero(chosen[start : start + len(block)])
            if whole and block.shape[1:] == shape:
                some = as_stored(np.ascontiguousarray(block[rows], dtype))
            else:
                model = _in_model(block[rows], pairs)
                outside += int((np.abs(model) > 1 + 1e-6).sum())
                some = _sized(model, shape, np.dtype(dtype) if whole else None)
            yield some, np.array(numbers)[start + rows] if labelled else None
        if outside:
            total = int(chosen.sum()) * int(np.prod(given.shape))
            log.warning("%s: %.2g %% lie outside of dataset.range, and are cut off", given.array, 100 * outside / total)

    return prepare(
        cache_folder(root, cache),
        {**key, "labels": fingerprint({"labels": numbers}) if labelled else None},
        name=path.stem,
        num_items=int(chosen.sum()),
        item_shape=shape,
        dtype={"uint8": np.uint8, "uint16": np.int16}[dtype] if whole else np.float32,
        class_names=classes if labelled else (),
        fill=fill,
        other=None if isinstance(medium, Images) and whole else medium,
    )


def found(node: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration leaves open."""
    opened = _opened(node["root"], node.get("images"), node.get("layout"))
    values = _labels(node["root"], node.get("labels"), len(opened))
    channels, *size = opened.shape
    range, dtype = node.get("range"), opened.dtype
    if range in (None, "each"):
        each = range == "each"
        range = list(FULL[dtype]) if dtype in FULL and not each else _extremes(opened, each)
    return {
        "num_classes": len(classes_of(values)[1]) if values is not None else 0,
        "channels": channels,
        "image_size": size[0] if size[0] == size[1] else size,
        "dtype": dtype,
        "range": range,
    }


class _Images:
    """An array of images as (N, C, H, W)."""

    def __init__(self, array: ArrayFile, layout: str) -> None:
        self.array, self.layout = array, layout
        self.dtype = array.dtype.name if array.dtype.name in FULL else "float32"  # of samples
        self.shape = tuple(np.moveaxis(np.empty((0, *array.shape[1:])), *self._channels()).shape[1:])
        if layout == "NHW":
            self.shape = (1, *array.shape[1:])

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.shape))
        return f"{self.array}: {len(self):,} images of {sizes}, {self.array.dtype} {self.layout}"

    def __len__(self) -> int:
        return self.array.shape[0]

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Some images, and the number of the first."""
        start = 0
        for block in self.array.blocks():
            yield start, block[:, None] if self.layout == "NHW" else np.moveaxis(block, *self._channels())
            start += len(block)

    def _channels(self) -> tuple[int, int]:
        """Where they are, and where they belong."""
        return (-1, 1) if self.layout == "NHWC" else (1, 1)


def _opened(root: str, name: str | None, layout: str | None) -> _Images:
    array = _chosen(arrays_of(Path(root)), name, root)
    if array.dtype.kind not in "buif" or len(array.shape) not in (3, 4) or 0 in array.shape:
        raise UserError(
            f"dataset.root: {array} must hold images as numbers, (N, H, W), (N, H, W, C) or (N, C, H, W), "
            f"and holds {array.dtype} {array.shape}"
        )
    return _Images(array, layout if layout and len(layout) == len(array.shape) else _layout(array, layout))


def _chosen(arrays: list[ArrayFile], name: str | None, root: str) -> ArrayFile:
    named = {str(array.name): array for array in arrays}
    if len(arrays) == 1 and name is None:
        return arrays[0]
    if name is not None:
        if name not in named:
            raise UserError(f"dataset.images={name}: {root} holds {', '.join(named)}")
        return named[name]
    likely = [named[known] for known in _IMAGES if known in named] or [a for a in arrays if len(a.shape) > 2]
    if len(likely) != 1 and not any(known in named for known in _IMAGES):
        raise UserError(f"dataset.images: say which array holds the images: {root} holds {', '.join(named)}")
    return likely[0]


def _layout(array: ArrayFile, asked: str | None) -> str:
    if asked is not None:
        raise UserError(f"dataset.layout={asked}: {array} has {len(array.shape)} dimensions, {array.shape}")
    if len(array.shape) == 3:
        return "NHW"
    if array.shape[1] == array.shape[3]:
        raise UserError(f"dataset.layout: {array} is of {array.shape}; say whether that is NHWC or NCHW")
    return "NHWC" if array.shape[3] < array.shape[1] else "NCHW"  # fewer channels than pixels


def _labels(root: str, labels: str | None, count: int) -> list[Any] | None:
    """One for each image, by number or name."""
    if labels is not None and labels.endswith(".npy"):
        array = arrays_of(Path(labels))[0]
    else:
        named = {str(array.name): array for array in arrays_of(Path(root))}
        if labels is not None and labels not in named:
            those = f"one of {', '.join(named)} in {root}, or " if Path(root).suffix.lower() == ".npz" else ""
            raise UserError(f"dataset.labels={labels}: name {those}an .npy file of whole numbers or names")
        name = labels or next((known for known in _LABELS if known in named), None)
        if name is None:
            return None
        array = named[name]
    if array.shape != (count,) or array.dtype.kind not in "iuU":
        raise UserError(
            f"dataset.labels: {array} must hold {count} whole numbers or names, and holds {array.dtype} {array.shape}"
        )
    return array.all().tolist()


def _told(pairs: Range) -> str:
    lows, highs = (" ".join(f"{pair[end]:g}" for pair in pairs) for end in (0, 1))
    return f"{lows} becomes -1 and {highs} 1"


def _check(given: _Images, channels: int, dtype: str, pairs: Range) -> None:
    if channels != given.shape[0]:
        raise UserError(f"dataset.channels={channels}: {given.array} has {given.shape[0]}; leave it out")
    if dtype not in (given.dtype, "float32"):
        raise UserError(f"dataset.dtype={dtype}: {given.array} holds {given.array.dtype}; leave it out")
    if len(pairs) not in (1, channels):
        raise UserError(f"dataset.range has {len(pairs)} pairs, and the images {channels} channels; give one or each")
    if wrong := next((pair for pair in pairs if not pair[0] < pair[1]), None):
        raise UserError(f"dataset.range: {list(wrong)} must be a number and a greater one")


def _extremes(given: _Images, each: bool) -> list[Any]:
    """The least and greatest number, of all channels or of each."""
    log.info("looking for the range of %s, which dataset.range can say", given.array)
    lows, highs = [], []
    for start, block in given.blocks():
        _check_finite(block, start, given.array)
        lows.append(block.min((0, 2, 3)))
        highs.append(block.max((0, 2, 3)))
    pairs = np.stack([np.min(lows, 0), np.max(highs, 0)], 1).astype(np.float64)
    pairs = pairs if each else np.array([[pairs[:, 0].min(), pairs[:, 1].max()]])
    if (same := np.flatnonzero(pairs[:, 0] >= pairs[:, 1])).size:
        where = f"channel {same[0]} of {given.array}" if each else str(given.array)
        raise UserError(f"dataset.range: {where} holds nothing but {pairs[same[0], 0]:g}; say [low, high]")
    return pairs.tolist() if each else pairs[0].tolist()


def _check_finite(block: np.ndarray, start: int, array: ArrayFile) -> None:
    if block.dtype.kind == "f" and not (good := np.isfinite(block).all((1, 2, 3))).all():
        number = start + int(np.flatnonzero(~good)[0])
        raise UserError(f"dataset.root: image {number} of {array} holds numbers that are not finite; mend or remove it")


def _in_model(block: np.ndarray, pairs: Range) -> np.ndarray:
    """(n, C, H, W) in [-1, 1] where it is within the range."""
    ends = np.array(pairs, np.float64)
    low, high = ends[:, 0, None, None], ends[:, 1, None, None]
    return (block.astype(np.float64) - low) * (2 / (high - low)) - 1


def _sized(model: np.ndarray, shape: tuple[int, ...], dtype: np.dtype | None) -> np.ndarray:
    """(n, C, H, W) of about [-1, 1] -> (n, *shape) as a Store has them: all numbers of `dtype`, or float32."""
    images = covering(torch.from_numpy(model.clip(-1, 1).astype(np.float32)), shape[1], shape[2]).clamp(-1, 1).numpy()
    if dtype is None:
        return images
    return as_stored(((images + 1) * (FULL[dtype.name][1] / 2)).round().astype(dtype))
