"""MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and SVHN, through torchvision's downloads and checksums."""

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.data.checks import check_channels, check_in_memory, check_num_classes, check_split
from ddpm_cli.data.prepare.cache import Blocks, CacheError, cache_folder, prepare
from ddpm_cli.data.prepare.download import open_set, source
from ddpm_cli.data.prepare.pixels import fit, pieces
from ddpm_cli.data.store import Store, fingerprint

log = logging.getLogger(__name__)

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


def _published(title: str, most_items: int, classes: tuple[str, ...]) -> Callable[..., Store]:
    """A set as a configuration names it. most_items: of any split, which tells how much room may be needed."""

    def load_set(
        *,
        root: str,
        cache: str | None,
        download: bool,
        split: str,
        channels: int,
        image_size: int,
        num_classes: int | None,
    ) -> Store:
        check_split(split, ("train", "test"))
        check_channels(channels)
        labelled = check_num_classes(num_classes, len(classes), what=title)
        cache_dir = cache_folder(root, cache)
        import torchvision.datasets  # takes a second

        files = source(getattr(torchvision.datasets, title), Path(root), split)
        load = functools.cache(lambda: _arrays(open_set(files, download)))  # read at most once, and only if it must be
        # Files that torchvision checks need not be read, nor even be there, once the set is prepared; of the others
        # counts what they hold.
        content = [_hash(*load())] if files.unchecked else [file.md5 for file in files.files]
        size = {"channels": channels, "image_size": image_size}
        key = {"set": title, "split": split, "content": content, "labelled": labelled, **size}
        fill = functools.partial(_blocks, load, labelled, **size)
        name, names = f"{title.lower()}-{split}", classes if labelled else ()
        shape = (channels, image_size, image_size)
        try:
            return prepare(
                cache_dir, key, name=name, num_items=most_items, item_shape=shape, class_names=names, fill=fill
            )
        except CacheError as error:
            if cache is not None:
                raise
            check_in_memory(most_items, channels * image_size**2)
            log.warning("%s; until then the set is kept in memory", error)
            images, labels = load()
            return Store(fit(images, **size), labels if labelled else None, names, name, fingerprint(key))

    return load_set


def _arrays(dataset: Any) -> tuple[Tensor, Tensor]:
    """A torchvision data set's images (N, C, H, W) uint8 and its labels (N,) int64."""
    images = torch.as_tensor(dataset.data)
    if images.ndim == 3:  # MNIST: (N, H, W)
        images = images[:, None]
    elif images.shape[1] != 3:  # CIFAR: (N, H, W, 3)
        images = images.permute(0, 3, 1, 2)
    labels = dataset.labels if hasattr(dataset, "labels") else dataset.targets  # SVHN has the former
    return images, torch.as_tensor(labels, dtype=torch.int64)


def _hash(images: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(images.numpy()).data)
    digest.update(labels.numpy().data)
    return digest.hexdigest()


def _blocks(load: Callable[[], tuple[Tensor, Tensor]], labelled: bool, channels: int, image_size: int) -> Blocks:
    images, labels = load()
    for rows in pieces(len(images), image_size):
        yield fit(images[rows], channels, image_size).numpy(), labels[rows].numpy() if labelled else None


mnist = _published("MNIST", 60_000, _DIGITS)  # handwritten digits, 1x28x28; test: 10,000
fashion_mnist = _published("FashionMNIST", 60_000, _CLOTHES)  # clothing, 1x28x28; test: 10,000
cifar10 = _published("CIFAR10", 50_000, _CIFAR10)  # photographs of ten things, 3x32x32; test: 10,000
cifar100 = _published("CIFAR100", 50_000, tuple(_CIFAR100.split()))  # of a hundred things, 3x32x32; test: 10,000
svhn = _published("SVHN", 73_257, _DIGITS)  # digits of house numbers, 3x32x32; test: 26,032
