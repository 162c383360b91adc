"""How cost grows: scripts/run python scripts/bench_growth.py [--only batch] [--png docs/pictures/growth.png]

Process time on one thread against batch, resolution, steps of a sampler, images of a prepared set and jobs of a sweep,
each with the exponents between neighbouring points (1: twice as much takes twice as long). Prints the tables of
docs/growth.md; --png draws them (matplotlib).
"""

import argparse
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import timing  # noqa: E402
from bench_sample import ours  # noqa: E402
from bench_train import training_step  # noqa: E402
from commands import TINY  # noqa: E402

from ddpm_cli.data.loading.batches import Batches  # noqa: E402
from ddpm_cli.data.store import Store  # noqa: E402

Curve = dict[int, float]  # size -> seconds
_NETWORK = ["dataset=shapes", "dataset.num_images=512", "model=unet_small", "precision=fp32"]
_ONE_STEP = ["training.num_steps=1", "training.sample_every=0", "training.heldout_every=0"]


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Process time of a call, the median of several after one to warm up."""
    work()
    took = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        took.append(time.process_time() - began)
    return median(took)


def of_a_command(folder: str, *words: str) -> float:
    """Process time of ddpm-train in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = "from ddpm_cli.train import main; main()"
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, *words], cwd=folder, env=environ, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def of_a_batch() -> Curve:
    step = lambda size: training_step(size, "dataset.image_size=16", recipe=_NETWORK)  # noqa: E731
    return {size: seconds(step(size), 3) for size in (1, 2, 4, 8, 16, 32, 64, 128)}


def of_a_side() -> Curve:
    step = lambda side: training_step(2, f"dataset.image_size={side}", recipe=_NETWORK)  # noqa: E731
    return {side: seconds(step(side), 3) for side in (8, 16, 32, 64, 128, 256)}


def of_steps() -> Curve:
    with tempfile.TemporaryDirectory() as folder:
        of_a_command(folder, *_NETWORK, *_ONE_STEP, "dataset.image_size=16", "run_dir=run")
        draw = lambda steps: ours(Path(folder, "run"), 4, steps, "precision=fp32")  # noqa: E731
        with torch.inference_mode():
            return {steps: seconds(draw(steps), 1) for steps in (1, 10, 100, 1000)}


def of_a_set() -> Curve:
    def read(images: int) -> float:
        items = torch.zeros(images, 3, 8, 8, dtype=torch.uint8)
        batches, step = Batches(Store(items, None, (), "memory", "0" * 16), 128, 0, False, "cpu"), count()
        return seconds(lambda: [batches.batch(next(step)) for _ in range(50)], 5) / 50

    return {images: read(images) for images in (1_000, 10_000, 100_000, 1_000_000)}


def of_jobs() -> Curve:
    with tempfile.TemporaryDirectory() as folder:
        sweep = lambda jobs: ["-m", "seed=" + ",".join(map(str, range(jobs)))] if jobs > 1 else []  # noqa: E731
        return {jobs: of_a_command(folder, *TINY, *_ONE_STEP, *sweep(jobs)) for jobs in (1, 2, 4, 8, 16)}


# What is measured, and along what.
CURVES: dict[str, tuple[Callable[[], Curve], str, str]] = {
    "batch": (of_a_batch, "a training step", "images"),
    "resolution": (of_a_side, "a training step of 2 images", "pixels a side"),
    "steps": (of_steps, "drawing 4 images", "steps of the sampler"),
    "set": (of_a_set, "a batch of 128 of a prepared set", "images"),
    "jobs": (of_jobs, "a sweep of one-step runs", "jobs"),
}


def exponents(curve: Curve) -> list[float]:
    """Of the power law through each two neighbouring points."""
    points = list(curve.items())
    return [math.log(t2 / t1) / math.log(n2 / n1) for (n1, t1), (n2, t2) in pairwise(points)]


def told(name: str, curve: Curve) -> str:
    _, what, along = CURVES[name]
    slopes = ["", *(f"{slope:.2f}" for slope in exponents(curve))]
    rows = [f"| {size} | {took:.3g} | {slope} |" for (size, took), slope in zip(curve.items(), slopes, strict=True)]
    return "\n".join([f"| {along} | {what}, s | exponent since the row above |", "|---|---|---|", *rows, ""])


def plot(png: Path, curves: dict[str, Curve]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = math.ceil(len(curves) / 3)
    figure, axes = plt.subplots(rows, min(3, len(curves)), figsize=(13, 3.6 * rows), squeeze=False)
    for panel, (name, curve) in zip(axes.flat, curves.items(), strict=False):
        _, what, along = CURVES[name]
        size, took = list(curve)[-1], list(curve.values())[-1]
        panel.loglog(list(curve), [took * n / size for n in curve], color="0.75", ls="--", label="exponent 1")
        panel.loglog(list(curve), list(curve.values()), "o-", color="C0", label="measured")
        panel.set(title=what, xlabel=along, ylabel="seconds")
        panel.grid(alpha=0.3)
    for panel in axes.flat[len(curves) :]:
        panel.remove()
    axes.flat[0].legend()
    figure.tight_layout()
    figure.savefig(png, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(CURVES), default=list(CURVES))
    parser.add_argument("--png", type=Path)
    parser.add_argument("--json", type=Path, help="a file to which the line of JSON is added")
    args = parser.parse_args()
    torch.set_num_threads(1)
    curves = {}
    for name in args.only:
        curves[name] = CURVES[name][0]()
        print(told(name, curves[name]), flush=True)
    if args.png is not None:
        plot(args.png, curves)
    timing.finish(timing.line("growth", curves=curves), args.json)


if __name__ == "__main__":
    main()
