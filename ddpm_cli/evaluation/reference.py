"""Features of real images, made once, and the floor: what real images score against real ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.build.trainer import build_data
from ddpm_cli.data.store import Store
from ddpm_cli.evaluation.cache import kept
from ddpm_cli.evaluation.features.base import Extracted, Features
from ddpm_cli.evaluation.metrics import Score, score
from ddpm_cli.seeding import generator
from ddpm_cli.system.progress import progress_bar

_ORDER = 0x0EFA7001  # stream of this module
_FORMAT = 1  # raise it when the same key would give other features
_BATCH = 512


@dataclass(frozen=True, eq=False)
class Reference:
    """Features of n images of a data set, in an order that is random and always the same, so that the first k of them
    stand for all. On the CPU."""

    features: Tensor  # (n, D) float32
    probabilities: Tensor | None  # (n, K) float32
    labels: Tensor | None  # (n,) int64
    rows: Tensor  # (n,): which images of the set
    dataset: str
    fingerprint: str  # of the data set
    split: str

    def __len__(self) -> int:
        return len(self.features)

    def describe(self) -> dict[str, Any]:
        """What stands beside a number."""
        plain = {"dataset": self.dataset, "split": self.split, "num_images": len(self)}
        return {**plain, "fingerprint": self.fingerprint}


def reference(store: Store, features: Features, cache_dir: Path, *, split: str) -> Reference:
    """The features of a set, in an order of which any first part stands for the whole, made once and kept in
    `cache_dir`."""
    rows = torch.randperm(len(store), generator=generator("cpu", _ORDER))
    key = {"format": _FORMAT, "data": store.fingerprint, "split": split, "num_images": len(store)}
    key |= {"features": features.sha256, "resize": features.resize}
    name = f"reference-{store.name}-{features.name}"
    found = kept(cache_dir, name, key, lambda: _extracted(store, features, rows))
    arrays = {name: torch.from_numpy(array) for name, array in found.items()}
    probabilities, labels = arrays.get("probabilities"), None if store.labels is None else store.labels[rows]
    return Reference(arrays["features"], probabilities, labels, rows, store.name, store.fingerprint, split)


def held_out(cfg: dict[str, Any]) -> tuple[Store, str] | None:
    """The other split of a configuration's data set, train or test, and its name; None for a set that is used whole."""
    other = {"train": "test", "test": "train"}.get(cfg["dataset"].get("split"))
    if other is None:
        return None
    return build_data({**cfg, "dataset": {**cfg["dataset"], "split": other}}), other


def floor(name: str, real: Reference, other: Reference | None, num_images: int) -> dict[str, Score]:
    """The figures of a metric for real images in place of drawn ones: the best that a perfect model can be expected to
    score with so many.

    They are `num_images` of `other`, a split that the reference has no part in; None: the reference's two halves are
    compared. Where there are fewer, Score.n tells how many.
    """
    if other is None:
        half = len(real) // 2
        images, against = _first(real, min(half, num_images)), real.features[half:]
    else:
        images, against = _first(other, num_images), real.features
    return score(name, images.features, images.probabilities, against, images.labels)


def _first(some: Reference, n: int) -> Extracted:
    parts = (some.features, some.probabilities, some.labels)
    features, *others = (None if part is None else part[:n] for part in parts)
    assert features is not None
    return Extracted(features, *others)


def _extracted(store: Store, features: Features, rows: Tensor) -> dict[str, np.ndarray]:
    parts = []
    with progress_bar(total=len(rows), unit="img", desc=f"features of {store.name}") as bar:
        for some in rows.split(_BATCH):
            parts.append(features(store.to_file(store.items[some])))
            bar.update(len(some))
    arrays = {"features": torch.cat([part.features for part in parts]).numpy()}
    probabilities = [part.probabilities for part in parts if part.probabilities is not None]
    return arrays | ({"probabilities": torch.cat(probabilities).numpy()} if probabilities else {})
