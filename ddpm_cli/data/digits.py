"""scikit-learn's handwritten digits: embedded in the package, so nothing is downloaded or cached."""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from ddpm_cli.data.checks import check_channels, check_in_memory, check_num_classes
from ddpm_cli.data.prepare.pixels import fit
from ddpm_cli.data.split import in_split
from ddpm_cli.data.store import Store, fingerprint


def digits(*, split: str, channels: int, image_size: int, num_classes: int | None) -> Store:
    """1,797 digits of 8x8 pixels, values 0..16 spread over 0..255; `test` is every sixth image, `train` the rest."""
    check_channels(channels)
    labelled = check_num_classes(num_classes, 10, what="digits")
    check_in_memory(1797, channels * image_size**2)
    pixels, classes = _read()
    images = torch.from_numpy(np.rint(pixels * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
    labels = torch.from_numpy(classes.astype(np.int64))
    chosen = torch.tensor(in_split(len(images), split))
    settings = {"split": split, "channels": channels, "image_size": image_size, "labelled": labelled}
    return Store(
        items=fit(images[chosen], channels, image_size),
        labels=labels[chosen] if labelled else None,
        class_names=tuple("0123456789") if labelled else (),
        name=f"digits-{split}",
        fingerprint=fingerprint({"set": "digits", **settings}),
    )


def _read() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 64) pixels and (1797,) classes: from scikit-learn's file, since to import the package takes longer than
    the rest of a short run's start."""
    package = find_spec("sklearn")
    path = Path(package.submodule_search_locations[0]) if package and package.submodule_search_locations else Path()
    file = path / "datasets/data/digits.csv.gz"
    if not file.exists():  # a later scikit-learn may keep it elsewhere
        from sklearn.datasets import load_digits

        pixels, classes = load_digits(return_X_y=True)
        return pixels, classes
    with gzip.open(file, "rt") as opened:
        table = np.loadtxt(opened, delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)
