"""Folders of small images."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(folder: Path, count: int, classes: int = 2, size: int = 10) -> list[Path]:
    """Random grey PNGs in one sub-folder a class."""
    random, paths = np.random.default_rng(0), []
    for k in range(count):
        path = folder / f"class_{k % classes}" / f"{k:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (size, size), dtype=np.uint8)).save(path)
        paths.append(path)
    return paths
