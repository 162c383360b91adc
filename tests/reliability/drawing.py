"""R19: an image is a function of its seed and number, and an interrupted drawing is completed by the same command."""

import io
import random
import signal
import time
from pathlib import Path

import numpy as np
from PIL import Image

from reliability import forks
from reliability.runs import Outcome, trained, unless

IMAGES = 8


def r19_sampling(place: Path, trials: int) -> Outcome:
    outcome, run = Outcome(), trained(place, "reference")
    args = [f"ckpt={run}", f"num_images={IMAGES}", "sampler.num_steps=5", "labels=each"]
    forks.run("sample", *args, "batch_size=3", "out_dir=whole", place=place)
    whole = _files(place / "whole")
    for batch in (1, 3, 8):
        ended = forks.run("sample", *args, f"batch_size={batch}", f"out_dir=by_{batch}", place=place)
        drawn = _files(place / f"by_{batch}")
        same = drawn == whole if batch == 3 else drawn.keys() == whole.keys() and _worst(drawn, whole) <= 1
        outcome.add(f"batches of {batch}", unless(ended.code == 0 and same, f"other images; {ended.err[-200:]}"))
    for trial in range(trials):
        dice, out = random.Random(trial), place / f"drawn_{trial}"
        more = ["batch_size=3", f"out_dir={out}"]
        for _ in range(2):
            child = forks.start("sample", [*args, *more], place / f"home_{trial}", _slow)
            deadline = time.monotonic() + 30
            while not list(out.glob("images/*.png")) and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(dice.uniform(0, 0.3))
            child.kill(dice.choice([signal.SIGKILL, signal.SIGTERM]))
            child.wait()
            if not _files(out).items() <= whole.items():
                outcome.add(f"kill {trial}", "a partial or another image")
        ended = forks.run("sample", *args, *more, place=place)
        outcome.add(
            f"kill {trial}",
            unless(ended.code == 0 and _files(out) == whole, f"not the whole set: {ended.err[-300:]}"),
            unless((out / "samples.npz").exists() and (out / "grid.png").exists(), "samples.npz or grid.png missing"),
            unless(not list(out.rglob("*.tmp")), "temporary files stay"),
        )
    return outcome


def _files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("images/[0-9]*.png")}


def _worst(some: dict[str, bytes], others: dict[str, bytes]) -> int:
    def pixels(data: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(data))).astype(int)

    return max(int(np.abs(pixels(some[name]) - pixels(others[name])).max()) for name in some)


def _slow() -> None:
    from ddpm_cli.models.unet import UNet

    real = UNet.forward

    def forward(self, *args):
        time.sleep(0.02)
        return real(self, *args)

    UNet.forward = forward
