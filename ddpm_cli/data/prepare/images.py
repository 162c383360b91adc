"""Image files of 8 or 16 bits as a prepared set, wherever they come from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_cli.data.prepare.cache import Blocks, prepare
from ddpm_cli.data.store import Store
from ddpm_cli.media.arrays import medium_of


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
    stored, other = (np.uint8, None) if dtype == "uint8" else (np.int16, medium_of(item_shape, dtype))
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
