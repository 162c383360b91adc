"""R20: what all of this costs, on the network of the CIFAR-10 recipe."""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ddpm_cli.build.trainer import assembled, build_parts
from ddpm_cli.config.check import configuration
from ddpm_cli.data.store import Store
from ddpm_cli.run_dir import checkpoint
from ddpm_cli.training.nonfinite import NonFiniteMonitor, first_non_finite
from reliability.runs import Outcome

MOST = 0.01


def r20_cost(place: Path, trials: int) -> Outcome:
    """On against off: the watch of a step, and fsync, checksums and the look for what is not finite of a checkpoint,
    spread over the recipe's interval. The step is measured at 1 image and scaled by FLOPs alone where trials is 0."""
    outcome = Outcome()
    cfg = _recipe(["model=unet_cifar10" if trials else "model=unet_small"])
    state, trainer = _parts(cfg)
    step = _median(lambda: trainer(state), 3)
    watch, metrics = NonFiniteMonitor(state), trainer(state)

    def look() -> None:
        watch.add(metrics)
        watch.check()

    look_cost = _median(look, 101)
    content = {"config": cfg, **state.state_dict()}
    saves = [
        (_seconds(lambda: _bare_save(place / "bare.pt", content)), _seconds(lambda: _save(place, content)))
        for _ in range(max(2, trials))
    ]
    bare, full = (statistics.median(column) for column in zip(*saves, strict=True))
    every = cfg["training"]["checkpoint_every"]
    share = (look_cost + max(0.0, full - bare) / every) / step
    outcome.add("CIFAR-10 network on CPU", None if share <= MOST else f"{share:.2%} of a step")
    gpu = (look_cost + max(0.0, full - bare) / every) / 0.05
    outcome.note = (
        f"{share:.3%} of a step of {step:.2f} s with 2 images (look {look_cost * 1e6:.0f} us; save {full:.2f} s, bare "
        f"{bare:.2f} s, every {every} steps); of a step of 50 ms it would be {gpu:.2%}"
    )
    return outcome


def _recipe(overrides: list[str]) -> dict:
    fixed = ["training.batch_size=2", "device=cpu", "precision=fp32"]
    return configuration("train", "dataset=cifar10", *overrides, *fixed)


def _parts(cfg: dict):
    store = Store(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), None, (), "blank", "0")
    train_step, state = assembled(cfg, build_parts(cfg), store)
    return state, train_step


def _save(place: Path, content: dict) -> None:
    assert first_non_finite(content) is None
    checkpoint.save(place / "full.pt", content)


def _bare_save(path: Path, content: dict) -> None:
    """What a program without all this does."""
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def _seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _median(function: Callable[[], object], times: int) -> float:
    return statistics.median(_seconds(function) for _ in range(times))
