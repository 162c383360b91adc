"""How long the rows of a batch take that lie scattered in a file out of memory: python scripts/bench_data.py [--gib 6]

Writes one file of so many GiB, and reads batches of it as training does, with nothing of it in memory at the beginning:
by touching the rows one after the other, and after telling the system which they will be (data/loading/paging.py).
"""

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
import torch

from ddpm_cli.data.loading import paging
from ddpm_cli.data.loading.batches import Batches
from ddpm_cli.data.store import Store

SHAPES = [(3, 32, 32), (3, 64, 64), (3, 256, 256)]
BATCH, STEPS = 128, 12


def written(path: Path, size: int) -> None:
    block = np.random.default_rng(0).integers(0, 256, 2**26, dtype=np.uint8).data
    with open(path, "wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def forgotten(path: Path) -> None:
    """Nothing of this file is in memory any more."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def milliseconds(path: Path, shape: tuple[int, ...], told: bool, seed: int) -> float:
    paging._LARGE = 0 if told else 2**63
    count = path.stat().st_size // int(np.prod(shape))
    items = torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="r", shape=(count, *shape)))
    batches, times = Batches(Store(items, None, (), "file", "0" * 16), BATCH, seed, False, "cpu"), []
    batches.batch(0)  # the order of the epoch
    forgotten(path)
    for step in range(1, STEPS):
        began = time.perf_counter()
        batches.batch(step)
        times.append(1000 * (time.perf_counter() - began))
    return median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=int, default=6, help="size of the file")
    parser.add_argument("--folder", help="where to write it; by default where temporary files are")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "items.bin"
        written(path, args.gib * 2**30)
        print(f"| {BATCH} rows of | touched one by one, ms | told beforehand, ms |\n|---|---|---|")
        for shape in SHAPES:
            pairs = [[milliseconds(path, shape, told, seed) for told in (False, True)] for seed in range(3)]
            plain, told = (median(times) for times in zip(*pairs, strict=True))
            print(f"| {'x'.join(map(str, shape))} bytes | {plain:.1f} | {told:.1f} |", flush=True)


if __name__ == "__main__":
    main()
