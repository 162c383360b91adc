"""MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and SVHN, through torchvision's downloads and checksums."""

import functools
import hashlib
import logging
from collections.abc import Iterator
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.data.checks import check_choice, check_flag, check_images, check_in_memory, check_num_classes, folder
from ddpm_cli.data.download import open_set, remotes
from ddpm_cli.data.fingerprint import fingerprint
from ddpm_cli.data.pixels import fit
from ddpm_cli.data.prepare import Block, CacheError, prepare
from ddpm_cli.data.store import Store

log = logging.getLogger(__name__)

_BLOCK = 2**24  # pixels made at once

_DIGITS = tuple("0123456789")
_CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)


class Settings(TypedDict):
    """The keywords of every set here, as its YAML has them."""

    root: str
    cache: str | None
    download: bool
    split: str
    channels: int
    image_size: int
    num_classes: int | None


def mnist(**settings: Unpack[Settings]) -> Store:
    """60,000 handwritten digits, 1x28x28 (test: 10,000)."""
    return _store("MNIST", 60_000, _DIGITS, **settings)


def fashion_mnist(**settings: Unpack[Settings]) -> Store:
    """60,000 pieces of clothing, 1x28x28 (test: 10,000)."""
    return _store("FashionMNIST", 60_000, _CLOTHES, **settings)


def cifar10(**settings: Unpack[Settings]) -> Store:
    """50,000 photographs of ten things, 3x32x32 (test: 10,000)."""
    return _store("CIFAR10", 50_000, _CIFAR10, **settings)


def cifar100(**settings: Unpack[Settings]) -> Store:
    """50,000 photographs of a hundred things, 3x32x32 (test: 10,000)."""
    return _store("CIFAR100", 50_000, tuple(_CIFAR100.split()), **settings)


def svhn(**settings: Unpack[Settings]) -> Store:
    """73,257 digits of house numbers, 3x32x32 (test: 26,032)."""
    return _store("SVHN", 73_257, _DIGITS, **settings)


def _store(
    title: str,
    most_items: int,  # of any split: how much room may be needed
    classes: tuple[str, ...],
    *,
    root: str,
    cache: str | None,
    download: bool,
    split: str,
    channels: int,
    image_size: int,
    num_classes: int | None,
) -> Store:
    check_choice("dataset.split", split, ("train", "test"))
    check_images(channels, image_size)
    check_flag("dataset.download", download)
    labelled = check_num_classes(num_classes, len(classes), what=title)
    source = folder("dataset.root", root)
    cache_dir = source / ".prepared" if cache is None else folder("dataset.cache", cache)
    dataset = _torchvision_class(title)
    load = functools.cache(lambda: _arrays(open_set(dataset, source, split, download)))
    if hasattr(dataset, "mirrors"):  # the MNIST family's unpacked files have no checksums: what they hold counts
        content = [_hash(*load())]
    else:  # checked by torchvision, so they need not be read, nor even be there, once the set is prepared
        content = [file.md5 for file in remotes(dataset, source, split)]
    size = {"channels": channels, "image_size": image_size}
    key = {"set": title, "split": split, "content": content, "labelled": labelled, **size}
    fill = functools.partial(_blocks, load, labelled, **size)
    name, names = f"{title.lower()}-{split}", classes if labelled else ()
    shape = (channels, image_size, image_size)
    try:
        return prepare(cache_dir, key, name=name, num_items=most_items, item_shape=shape, class_names=names, fill=fill)
    except CacheError as error:
        if cache is not None:
            raise
        check_in_memory(most_items, channels * image_size**2)
        log.warning("%s; until then the set is kept in memory", error)
        return _in_memory(list(fill()), names, name, fingerprint(key))


def _torchvision_class(title: str) -> Any:
    import torchvision.datasets  # takes a second

    return getattr(torchvision.datasets, title)


def _arrays(dataset: Any) -> tuple[Tensor, Tensor]:
    """A torchvision data set's images (N, C, H, W) uint8 and its labels (N,) int64."""
    images = torch.as_tensor(dataset.data)
    if images.ndim == 3:  # MNIST: (N, H, W)
        images = images[:, None]
    elif images.shape[1] != 3:  # CIFAR: (N, H, W, 3)
        images = images.permute(0, 3, 1, 2)
    labels = dataset.labels if hasattr(dataset, "labels") else dataset.targets
    return images, torch.as_tensor(labels, dtype=torch.int64)


def _hash(images: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(images.numpy()).data)
    digest.update(labels.numpy().data)
    return digest.hexdigest()


def _blocks(load: Any, labelled: bool, channels: int, image_size: int) -> Iterator[Block]:
    images, labels = load()
    rows = max(1, _BLOCK // (3 * image_size**2))
    for some, some_labels in zip(images.split(rows), labels.split(rows), strict=True):
        yield fit(some, channels, image_size).numpy(), some_labels.numpy() if labelled else None


def _in_memory(blocks: list[Block], names: tuple[str, ...], name: str, identity: str) -> Store:
    items = torch.from_numpy(np.concatenate([items for items, _ in blocks]))
    labels = [labels for _, labels in blocks if labels is not None]
    return Store(items, torch.from_numpy(np.concatenate(labels)) if labels else None, names, name, identity)
