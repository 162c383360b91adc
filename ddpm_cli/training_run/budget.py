"""budget=10m: how many steps fit into the time that is left, and a recipe that fits so many steps."""

import logging
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ddpm_cli.build.averages import build_averaging
from ddpm_cli.config.check import check_budget
from ddpm_cli.config.context import Context
from ddpm_cli.config.durations import seconds_of
from ddpm_cli.errors import UserError
from ddpm_cli.run_dir import checkpoint
from ddpm_cli.run_dir.folder import RunDir
from ddpm_cli.system.memory import out_of_memory_told
from ddpm_cli.training.meter import Meter
from ddpm_cli.training.nonfinite import NonFiniteMonitor
from ddpm_cli.training.state import TrainState
from ddpm_cli.training.step import TrainStep
from ddpm_cli.training_run.probe import per_call, untouched

log = logging.getLogger("ddpm_cli")

Config = dict[str, Any]
# (a clock that waits for the device, seconds that may be spent) -> seconds that a preview takes
PreviewSeconds = Callable[[Callable[[], float], float], float]

LEAST_STEPS = 20
_END, _MARGIN = 0.5, 0.02  # seconds for the process to end, and a share of the budget for what is not measured
_MEASURED, _LEAST, _MOST = 0.03, 1.0, 30.0  # share of the time left that is spent on measuring, and its bounds
# Untyped cadences: at least so many previews and checkpoints in a run, and at most such shares of its time.
_PREVIEWS, _LOG_LINES, _PREVIEW_SHARE, _CHECKPOINT_SHARE = 4, 20, 0.05, 0.02
_ONE_PREVIEW = 0.2  # of the time: a preview that takes longer is not drawn at all
_WARMUP, _EMA_HORIZON = 0.1, 0.1  # of the steps, at most


@dataclass(frozen=True)
class Speed:
    """Seconds that a step, a preview and a checkpoint take."""

    step: float
    preview: float
    checkpoint: float

    def of(self, training: Config) -> float:
        """Seconds of a run with these num_steps and cadences."""
        steps, previews = training["num_steps"], training["sample_every"]
        drawn = math.ceil(steps / previews) if previews else 0
        saved = math.ceil(steps / training["checkpoint_every"])
        return steps * self.step + drawn * self.preview + saved * self.checkpoint


def applied(
    cfg: Config,
    context: Context,
    run: RunDir,
    train_step: TrainStep,
    state: TrainState,
    preview_seconds: PreviewSeconds,
) -> tuple[Config, TrainStep]:
    """The configuration and the step of a run that ends when its budget does; the state is as before. The other ranks
    call `followed` meanwhile.

    What is chosen are plain values of the configuration, as if they had been typed; what was typed stays. UserError if
    the budget is too short.
    """
    check_budget(cfg, context.overrides)  # a sweeper may have set either
    budget = seconds_of(cfg["budget"])
    clock = lambda: time.monotonic() - context.began  # noqa: E731
    reserve = _END + _MARGIN * budget
    speed = measured(cfg, run, train_step, state, preview_seconds, budget - reserve - clock(), clock)
    spent = clock() + reserve
    training = fitting(cfg["training"], context.typed_keys, speed, budget - spent)
    if training["num_steps"] < LEAST_STEPS:
        raise too_short(cfg, training, speed, spent)
    log.info(
        "budget=%s: a step takes %.3g s, a preview %.3g s, a checkpoint %.3g s, and %.0f s are left: %d steps",
        cfg["budget"], speed.step, speed.preview, speed.checkpoint, budget - spent, training["num_steps"],
    )  # fmt: skip
    chosen = adapted({**cfg, "training": training}, context.typed_keys)
    recipe = [f"experiment={context.choices['experiment']}"] if context.choices.get("experiment") else []
    log.info("as if typed: %s", " ".join([*recipe, *_differences(cfg, chosen)]))
    train_step.ranks.first(chosen)
    return chosen, with_recipe(chosen, train_step, state)


def followed(train_step: TrainStep, state: TrainState) -> tuple[Config, TrainStep]:
    """The same on a rank beside the first, which takes part in the steps that are timed and does as these tell."""
    seconds_of_steps(train_step, state, math.nan, lambda: math.nan)
    chosen: Config = train_step.ranks.first({})
    return chosen, with_recipe(chosen, train_step, state)


def with_recipe(recipe: Config, train_step: TrainStep, state: TrainState) -> TrainStep:
    """The step, and the state's averages, with the num_steps, warm-up and decays that were chosen."""
    for name, decay in build_averaging(recipe).decays(recipe["training"]["batch_size"]).items():
        state.emas[name].decay_at = decay
    optimizer = {key: recipe["optimizer"][key] for key in ("warmup_steps", "decay")}
    settings = replace(train_step.settings, num_steps=recipe["training"]["num_steps"], **optimizer)
    return replace(train_step, settings=settings)


def measured(
    cfg: Config,
    run: RunDir,
    train_step: TrainStep,
    state: TrainState,
    preview_seconds: PreviewSeconds,
    room: float,
    clock: Callable[[], float],
) -> Speed:
    """Steps of the run itself, the first steps of a preview and a checkpoint, timed within a small part of `room`
    seconds; undone."""
    took = seconds_of_steps(train_step, state, room, clock)
    now = partial(_now, next(state.network.parameters()).device, clock)
    with untouched(state):
        drawing = preview_seconds(now, _to_measure(room) / 2) if cfg["training"]["sample_every"] else 0.0
        began, path = now(), run.checkpoints / ".budget.tmp"
        checkpoint.save(path, {"config": cfg, **state.state_dict()})
        path.unlink()
        return Speed(took, drawing, now() - began)


def seconds_of_steps(train_step: TrainStep, state: TrainState, room: float, clock: Callable[[], float]) -> float:
    """Seconds that a step takes, on all ranks together: by the first one's clock, so that all make the same steps.
    Undone."""
    device, ranks = next(state.network.parameters()).device, train_step.ranks
    meter, monitor = Meter(device), NonFiniteMonitor(state)
    room = ranks.first(room)

    def step() -> None:  # with all that the loop does at every step
        metrics = train_step(state)
        meter.add(metrics)
        monitor.add(metrics)

    with untouched(state), out_of_memory_told(lambda: train_step.out_of_memory_words(state.step)):
        return per_call(step, lambda: ranks.first(_now(device, clock)), _to_measure(room), room / LEAST_STEPS)


def _to_measure(room: float) -> float:
    """Seconds that are spent on measuring."""
    return min(max(_MEASURED * room, _LEAST), _MOST)


def _now(device: torch.device, clock: Callable[[], float]) -> float:
    """What the clock says once the device has done all it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return clock()


def fitting(training: Config, typed: Collection[str], speed: Speed, room: float) -> Config:
    """The training settings with the largest num_steps that ends within `room` seconds (0 if none does), and with
    cadences that suit it where they were not typed."""
    fits, too_many = 0, max(1, min(int(max(room, 0.0) / speed.step) + 1, 10**9 + 1))
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if speed.of(_with_steps(training, middle, typed, speed, room)) <= room:
            fits = middle
        else:
            too_many = middle
    return _with_steps(training, fits, typed, speed, room)


def _with_steps(training: Config, steps: int, typed: Collection[str], speed: Speed, room: float) -> Config:
    def every(key: str, least: int, most: float) -> int:
        """The configured cadence, within these numbers of times a run."""
        rarely = math.ceil(steps / max(1, int(most)))
        return max(min(training[key], math.ceil(steps / least)), rarely, 1)

    previews = _PREVIEW_SHARE * room / max(speed.preview, 1e-9)
    chosen = {
        "log_every": every("log_every", _LOG_LINES, steps),
        "checkpoint_every": every("checkpoint_every", _PREVIEWS, _CHECKPOINT_SHARE * room / speed.checkpoint),
        "sample_every": every("sample_every", _PREVIEWS, previews) if speed.preview <= _ONE_PREVIEW * room else 0,
    }
    free = {key: value for key, value in chosen.items() if training[key] and f"training.{key}" not in typed}
    return {**training, **free, "num_steps": steps}


def adapted(cfg: Config, typed: Collection[str]) -> Config:
    """Warm-up, decay and averaging for cfg's num_steps, however short; what was typed stays.

    The warm-up takes a tenth of the steps at most, a constant learning rate falls to zero at the end, and the average
    reaches back over a tenth of the run at most: beyond that it would hold the initial weights.
    """
    steps, optimizer, ema = cfg["training"]["num_steps"], dict(cfg["optimizer"]), dict(cfg["ema"])
    if "optimizer.warmup_steps" not in typed:
        optimizer["warmup_steps"] = min(optimizer["warmup_steps"], int(_WARMUP * steps))
    if "optimizer.decay" not in typed and optimizer["decay"] == "none":
        optimizer["decay"] = "cosine"
    if "decay" in ema and "ema.decay" not in typed:  # other averages know how long the run is
        ema["decay"] = min(ema["decay"], round(1 - 1 / (_EMA_HORIZON * steps), 6))
    return {**cfg, "optimizer": optimizer, "ema": ema}


def too_short(cfg: Config, training: Config, speed: Speed, spent: float) -> UserError:
    """The refusal, with a budget that would do."""
    needed = spent + speed.of({**training, "num_steps": LEAST_STEPS})
    enough = f"{math.ceil(1.2 * needed)}s" if needed < 100 else f"{math.ceil(1.2 * needed / 60)}m"
    previews = " or training.sample_every=0" if training["sample_every"] else ""
    return UserError(
        f"budget={cfg['budget']} is too short: {training['num_steps']} steps of {speed.step:.3g} s fit beside "
        f"{spent:.0f} s for beginning and end, and {LEAST_STEPS} are the least\n"
        f"Set budget={enough} or more, or make steps shorter (training.batch_size, model.channels){previews}"
    )


def _differences(before: Config, after: Config) -> list[str]:
    groups = ("training", "optimizer", "ema")
    return [
        f"{group}.{key}={value}"
        for group in groups
        for key, value in after[group].items()
        if value != before[group][key]
    ]
