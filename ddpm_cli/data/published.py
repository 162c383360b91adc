"""The classification sets of torchvision by the names of their classes, through torchvision's downloads."""

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_cli.data.checks import check_channels, check_num_classes, check_split
from ddpm_cli.data.prepare.cache import Blocks, cache_folder, find_prepared, prepare
from ddpm_cli.data.prepare.download import FAILURES, fetching
from ddpm_cli.data.prepare.pool import in_order
from ddpm_cli.data.split import in_split
from ddpm_cli.data.store import Store
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.media.image_files import pixels_of, sides

log = logging.getLogger("ddpm_cli")

_ELSEWHERE = {name: f"dataset={name}" for name in ("mnist", "fashion_mnist", "cifar10", "cifar100", "svhn")}
# Of a set in one piece: test is every sixth image, train the rest.
_SIXTH: dict[str, dict[str, Any]] = {"all": {}, "train": {}, "test": {}}
_BOTH = {"train": {"train": True}, "test": {"train": False}}


@dataclass(frozen=True)
class _Set:
    """What is known of a set before it is there."""

    classes: int
    splits: Mapping[str, Mapping[str, Any]]  # our name of a split: what torchvision is told
    shape: tuple[int, int] = (3, 64)  # channels, pixels a side, unless others are typed: photographs come in all sizes
    more: Mapping[str, Any] = field(default_factory=dict)
    first: int = 0  # the number of the first class there
    turned: bool = False  # the images lie on their side, mirrored


def _split(*names: str, **others: str) -> dict[str, dict[str, str]]:
    """Splits that torchvision calls alike, and those that it calls otherwise."""
    return {name: {"split": told} for name, told in [*zip(names, names, strict=True), *others.items()]}


def _emnist(split: str, classes: int, first: int = 0) -> _Set:
    return _Set(classes, _BOTH, (1, 28), {"split": split}, first, turned=True)


_SETS = {
    "Caltech101": _Set(101, _SIXTH),
    "Caltech256": _Set(257, _SIXTH),
    "Country211": _Set(211, _split("train", "test", val="valid")),
    "DTD": _Set(47, _split("train", "val", "test")),
    "EMNIST-balanced": _emnist("balanced", 47),
    "EMNIST-byclass": _emnist("byclass", 62),
    "EMNIST-bymerge": _emnist("bymerge", 47),
    "EMNIST-digits": _emnist("digits", 10),
    "EMNIST-letters": _emnist("letters", 26, first=1),
    "EuroSAT": _Set(10, _SIXTH, (3, 64)),
    "FGVCAircraft": _Set(100, _split("train", "val", "trainval", "test")),
    "Flowers102": _Set(102, _split("train", "val", "test")),
    "Food101": _Set(101, _split("train", "test")),
    "GTSRB": _Set(43, _split("train", "test"), (3, 32)),
    "Imagenette": _Set(10, _split("train", test="val")),
    "KMNIST": _Set(10, _BOTH, (1, 28)),
    "OxfordIIITPet": _Set(37, _split("test", train="trainval")),
    "QMNIST": _Set(10, _BOTH, (1, 28)),
    "RenderedSST2": _Set(2, _split("train", "val", "test")),
    "SEMEION": _Set(10, _SIXTH, (1, 16)),
    "STL10": _Set(10, _split("train", "test"), (3, 96)),
    "SUN397": _Set(397, _SIXTH),
    "StanfordCars": _Set(196, _split("train", "test")),
    "USPS": _Set(10, _BOTH, (1, 16)),
}


def published(
    *,
    name: str,
    root: str,
    cache: str | None,
    download: bool,
    split: str,
    channels: int,
    image_size: int | Sequence[int],
    num_classes: int | None,
) -> Store:
    """The set prepared into `cache` (null: ROOT/.prepared), after which its files are not needed any more.

    Images are scaled to cover the size, and their middle kept.
    """
    known = _known(name)
    check_split(split, tuple(known.splits))
    check_channels(channels)
    labelled = check_num_classes(num_classes, known.classes, what=name)
    cache_dir, folder = cache_folder(root, cache), f"{name.lower()}-{split}"
    size = {"channels": channels, "image_size": list(sides(image_size))}
    key = {"set": "torchvision", "name": name, "split": split, "labelled": labelled, **size}
    if (store := find_prepared(cache_dir, folder, key)) is not None:
        return store
    dataset = _opened(name, known, Path(root), split, download)
    count = len(dataset)
    rows = range(count) if known.splits[split] else np.flatnonzero(in_split(count, split)).tolist()
    read = partial(_read, name, known, dataset, channels, image_size)
    return prepare(
        cache_dir, key, name=folder, num_items=len(rows), item_shape=(channels, *sides(image_size)),
        class_names=_class_names(dataset, known) if labelled else (), fill=lambda: _blocks(read, rows, labelled),
    )  # fmt: skip


def found(node: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration leaves open."""
    known = _known(node["name"])
    return {"num_classes": known.classes, "channels": known.shape[0], "image_size": known.shape[1]}


def _known(name: str) -> _Set:
    if name in _SETS:
        return _SETS[name]
    names = {known.lower(): known for known in _SETS} | _ELSEWHERE
    begun = [known for low, known in names.items() if low.startswith(name.lower())][:5]
    near = begun or [names[found] for found in difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UserError(f"dataset.name={name}: no such set{hint}\nthere are {', '.join(_SETS)}")


def _opened(name: str, known: _Set, root: Path, split: str, download: bool) -> Any:
    """torchvision's data set; UserError or WorldError where it cannot be had."""
    from torchvision import datasets

    make = partial(getattr(datasets, name.partition("-")[0]), str(root), **known.splits[split], **known.more)
    try:
        return make(download=False)
    except (*FAILURES, ImportError) as error:
        if not download:
            raise UserError(
                f"dataset.root: {name} is not in {root.absolute()} as torchvision wants it ({_line(error)})\n"
                "put its files there, or set dataset.download=true or dataset.root=PATH"
            ) from error
    try:
        with fetching(root):
            log.info("downloading %s to %s", name, root)
            return make(download=True)
    except (*FAILURES, ImportError) as error:
        raise WorldError(
            f"{name} could not be downloaded to {root.absolute()}: {_line(error)}\n"
            "put its files there as torchvision has them, or set dataset.root=PATH"
        ) from error


def _class_names(dataset: Any, known: _Set) -> tuple[str, ...]:
    """As torchvision has them, else their numbers."""
    told = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or ()
    names = tuple(" ".join(name) if isinstance(name, tuple) else str(name) for name in told)[known.first :]
    unique = len(set(names)) == known.classes
    return names if unique else tuple(str(number) for number in range(known.classes))


def _read(
    name: str, known: _Set, dataset: Any, channels: int, image_size: int | Sequence[int], row: int
) -> tuple[np.ndarray, int]:
    try:
        image, label = dataset[row]
        pixels = pixels_of(image, channels, image_size)
    except Exception as error:  # of torchvision, or of Pillow's plugins, which raise anything
        raise UserError(f"dataset.name={name}: image {row} cannot be read: {_line(error)}") from error
    return pixels.swapaxes(1, 2) if known.turned else pixels, int(label) - known.first


def _blocks(read: Callable[[int], tuple[np.ndarray, int]], rows: Sequence[int], labelled: bool) -> Blocks:
    for some in in_order(lambda part: [read(row) for row in part], rows):
        yield np.stack([pixels for pixels, _ in some]), np.array([label for _, label in some]) if labelled else None


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:250]
