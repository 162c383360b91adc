"""Image files of 8 or 16 bits as a set, prepared or on demand, wherever they come from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm_cli.data.prepare.cache import Blocks, prepare
from ddpm_cli.data.prepare.decoding import Item
from ddpm_cli.data.prepare.on_demand import OnDemand
from ddpm_cli.data.store import Store, fingerprint
from ddpm_cli.media.arrays import medium_of
from ddpm_cli.media.base import Medium


def prepare_images(
    cache_dir: Path,
    key: dict[str, Any],
    *,
    name: str,
    num_items: int,
    item_shape: tuple[int, ...],
    dtype: str,
    class_names: tuple[str, ...],
    fill: Callable[[], Blocks],
) -> Store:
    """As prepare(); dtype: of the files, uint8 or uint16, whose numbers `fill` gives as a Store has them."""
    stored, other = _as_stored(item_shape, dtype)
    return prepare(
        cache_dir,
        key,
        name=name,
        num_items=num_items,
        item_shape=item_shape,
        dtype=stored,
        class_names=class_names,
        fill=fill,
        other=other,
    )


def images_on_demand(
    key: dict[str, Any],
    *,
    name: str,
    labels: Sequence[int],
    item: Callable[[int], Item],
    item_shape: tuple[int, ...],
    dtype: str,
    class_names: tuple[str, ...],
    on_error: str,
    max_skipped: float,
    held: Any = None,
) -> Store:
    """A set of which nothing is kept. labels: of all items; `class_names` is empty where they are to be left
    out. `key` tells the set from others, on every machine: nobody knows the content."""
    stored, other = _as_stored(item_shape, dtype)
    items = OnDemand(
        item,
        labels,
        item_shape,
        torch.from_numpy(np.empty(0, stored)).dtype,
        many="images",
        skip=on_error == "skip",
        max_skipped=max_skipped,
        held=held,
    )
    identity = {"on_demand": key, "shape": item_shape, "dtype": dtype, "class_names": class_names}
    kept = torch.tensor(labels, dtype=torch.int64) if class_names else None
    return Store(items, kept, class_names, name, fingerprint(identity), other)


def _as_stored(item_shape: tuple[int, ...], dtype: str) -> tuple[type, Medium | None]:
    return (np.uint8, None) if dtype == "uint8" else (np.int16, medium_of(item_shape, dtype))
