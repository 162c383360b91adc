"""What batches cost: scripts/run python scripts/bench_data.py [--gib 6] [--images FOLDER]

Of rows that lie scattered in a file out of memory: writes one of so many GiB, and reads batches of it as training does,
with nothing of it in memory at the beginning, by touching the rows one after the other, and after telling the system
which they will be (data/loading/paging.py). With --images instead: of a folder of images in a folder for each class,
32 pixels and mirrored, beside torchvision's ImageFolder in a DataLoader of two workers, in turn, by the wall's clock.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import timing  # noqa: E402

from ddpm_cli.build.trainer import build_data  # noqa: E402
from ddpm_cli.config.check import configuration  # noqa: E402
from ddpm_cli.data.loading import paging  # noqa: E402
from ddpm_cli.data.loading.batches import Batches  # noqa: E402
from ddpm_cli.data.store import Store  # noqa: E402

SHAPES = [(3, 32, 32), (3, 64, 64), (3, 256, 256)]
BATCH, STEPS = 128, 12
MORE = 50  # times as many batches of ours


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


def ours(folder: str) -> Callable[[], None]:
    """Batches of the set as it is after it was prepared; so many that the other's workers, who read ahead when their
    turn is over, are done in a small part of the time."""
    words = [f"dataset.root={folder}", "dataset.image_size=32", "dataset.flip=true"]
    batches = Batches(build_data(configuration("train", "dataset=image_folder", *words)), BATCH, 0, True, "cpu")
    step = iter(range(10**9))

    def work() -> None:
        for _ in range(MORE * STEPS):
            batches.batch(next(step))

    return work


def image_folder(folder: str) -> Callable[[], None]:
    """So many batches of torchvision's, whose workers stay."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    normalised = [transforms.ToTensor(), transforms.Normalize(3 * [0.5], 3 * [0.5])]
    steps = [transforms.Resize((32, 32)), transforms.RandomHorizontalFlip(), *normalised]
    images = datasets.ImageFolder(folder, transforms.Compose(steps), allow_empty=True)  # our prepared set lies there
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True)

    def forever() -> Iterator[object]:
        while True:
            yield from loader

    batches = forever()

    def work() -> None:
        for _ in range(STEPS):
            next(batches)

    return work


def beside_image_folder(folder: str, rounds: int) -> None:
    made = {"ddpm_cli": ours(folder), "ImageFolder, 2 workers": image_folder(folder)}
    counts = (MORE * STEPS * BATCH, STEPS * BATCH)
    contestants = {name: timing.Timed(*of) for name, *of in zip(made, made.values(), counts, strict=True)}
    timing.in_turn(contestants, rounds)
    base = "ImageFolder, 2 workers"
    print(timing.told(contestants, base, what=f"batches of {BATCH}", unit="images/s", clock="wall"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", metavar="FOLDER", help="compare with ImageFolder on the images there")
    parser.add_argument("--rounds", type=int, default=5, help="of that comparison")
    parser.add_argument("--gib", type=int, default=6, help="size of the file")
    parser.add_argument("--folder", help="where to write it; by default where temporary files are")
    args = parser.parse_args()
    if args.images:
        return beside_image_folder(args.images, args.rounds)
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
