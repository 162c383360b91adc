"""A training run from its configuration to its folder: what ddpm-train does once its command line is validated.

Five stages, each of which stands on what the one before has settled:

    1 open      the folder is this process's alone, the configuration final, and its objects fit together
    2 prepare   the data is there, and the processes of the other ranks are starting
    3 build     network, optimiser and state are on their device, as a checkpoint or the seed says
    4 measure   the ranks are one group; how many images go through at once and how many steps there are is known
    5 train     the loop, its checkpoints and previews, and how it ended
"""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import yaml

from ddpm_cli.build.found import with_values_found
from ddpm_cli.build.latents import with_latents_scaled
from ddpm_cli.build.machine import environment
from ddpm_cli.build.model import ema_denoiser
from ddpm_cli.build.summary import describe, repeated
from ddpm_cli.build.trainer import Parts, assembled, build_data, build_parts, work_of
from ddpm_cli.config.context import Context
from ddpm_cli.data.store import Store
from ddpm_cli.diffusion.compatibility import lopsided
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.errors import UserError
from ddpm_cli.results.runs import last_logged
from ddpm_cli.run_dir.checkpoint import OpenCheckpoint
from ddpm_cli.run_dir.find import run_of
from ddpm_cli.run_dir.folder import RunDir
from ddpm_cli.run_dir.result import recorded
from ddpm_cli.sampling.preview import Preview
from ddpm_cli.system.launch_env import place_of
from ddpm_cli.system.signals import Signals
from ddpm_cli.system.threads import shared_by
from ddpm_cli.training.loop import Cadence, Callbacks, Measurement, train
from ddpm_cli.training.state import TrainState
from ddpm_cli.training.step import TrainStep
from ddpm_cli.training_run import budget
from ddpm_cli.training_run.callbacks import (
    CheckpointCallback,
    PreviewCallback,
    build_preview,
    interruptible,
    run_content,
)
from ddpm_cli.training_run.launch import Workers, check_launched, ranks_for
from ddpm_cli.training_run.measurements import build_measurements, objective
from ddpm_cli.training_run.probe import joined
from ddpm_cli.training_run.profile import Profile
from ddpm_cli.training_run.restore import gone_on_with, restored, warn_of_other_data
from ddpm_cli.training_run.tracking import build_journal

log = logging.getLogger("ddpm_cli")

Config = dict[str, Any]


@dataclass(frozen=True)
class Opened:
    """A run that may begin: its locked folder, its configuration, and what that names."""

    cfg: Config
    run: RunDir
    parts: Parts
    num_ranks: int
    resumed: OpenCheckpoint | None = None

    @property
    def threads(self) -> Any:
        """Of all ranks that this process starts: as many as the run began with, unless this invocation names more."""
        wanted = self.cfg["threads"]
        known: Any = self.resumed.content.get("threads") if self.resumed else None
        return wanted if wanted != "auto" or known is None or place_of(os.environ) else known * self.num_ranks


@dataclass(frozen=True)
class Ready:
    """All that the loop works on; the configuration now holds what was measured."""

    cfg: Config
    store: Store
    train_step: TrainStep
    state: TrainState
    preview: Preview
    averaged: Denoiser  # what a preview is drawn with
    measurements: list[Measurement]
    profile: Profile | None


def run_training(cfg: Config, context: Context) -> float:
    """Trains as configured and returns the final training loss; the last line on stdout is the run's folder."""
    place = place_of(os.environ)
    if cfg["dry_run"]:
        if place is None or place.rank == 0:
            going_on = context.checkpoint is not None
            whole = gone_on_with(cfg, context)[1] if going_on else with_values_found(cfg, context.chosen_keys)
            plan = describe(whole)
            print("\n".join(f"{key}: {value}" for key, value in plan.items()))
        return math.nan
    if place is not None and place.rank > 0:
        from ddpm_cli.training_run.rank import follow_launched

        return follow_launched(place)
    with Workers(place) as workers:
        check_launched(place, cfg, context)
        with (
            _opened(cfg, context) as opened,
            opened.run.log.telling_errors(),
            recorded(opened.run.path, context) as result,
            shared_by(opened.threads),
        ):
            return _train(opened, context, workers, result)


def _train(opened: Opened, context: Context, workers: Workers, result: dict[str, Any]) -> float:
    opened = replace(opened, cfg=with_latents_scaled(opened.cfg))
    store = _prepared(opened, workers)
    train_step, state = _built(opened, store)
    ready = _measured(opened, context, workers, store, train_step, state)
    result["environment"] = environment(opened.parts.machine, opened.num_ranks)
    return _trained(opened, context, workers, ready, result)


@contextmanager
def _opened(cfg: Config, context: Context) -> Iterator[Opened]:
    """Stage 1, first because all others write into the folder or read the configuration; at its end the folder is let
    go of.

    A new run's objects are made before its folder is, so that a run that is refused leaves nothing behind. What a
    resumed run is made of is known only once the checkpoint is read, and that only under the folder's lock: until
    then another process may write or remove it.
    """
    found = context.checkpoint
    if found is None:
        cfg = with_values_found(cfg, context.chosen_keys)
        new = build_parts(cfg), ranks_for(cfg)
        run = RunDir.create(context.run_dir, context.record)
    else:
        start = RunDir.create if run_of(found) is None else RunDir.open
        run = start(context.run_dir, context.record)
    try:
        yield Opened(cfg, run, *new) if found is None else _resumed(cfg, context, run)
    except UserError:
        if not context.multirun:
            run.withdraw()
        raise
    finally:
        run.close()


def _resumed(cfg: Config, context: Context, run: RunDir) -> Opened:
    resumed, cfg = gone_on_with(cfg, context)
    return Opened(cfg, run, build_parts(cfg, resumed.content), ranks_for(cfg), resumed)


def _prepared(opened: Opened, workers: Workers) -> Store:
    """Stage 2, after the folder is known to be ours and writable, since to prepare a data set may take an hour; before
    the device is filled, since the ranks started here import torch meanwhile. They find the set prepared."""
    store = build_data(opened.cfg)
    workers.start(opened.num_ranks, opened.run.path)
    return store


def _built(opened: Opened, store: Store) -> tuple[TrainStep, TrainState]:
    """Stage 3, after the data, which the step draws from; before the ranks join, which take over what this rank found:
    device, precision and, last of all, the state."""
    cfg, run, resumed = opened.cfg, opened.run, opened.resumed
    train_step, state = assembled(cfg, opened.parts, store)
    restored(state, cfg, resumed, store.class_names)
    if resumed is not None:
        run.set_aside(state.step, resumed.damaged)
        warn_of_other_data(resumed, store, train_step)
    return train_step, state


def _measured(
    opened: Opened, context: Context, workers: Workers, store: Store, train_step: TrainStep, state: TrainState
) -> Ready:
    """Stage 4, after the build, since it tries the run's own objects; before the loop, which needs their number.

    In it the order counts as well. All ranks look for the micro-batch together, so they join before. The budget times
    steps of that micro-batch on all ranks, so they have the state before. The configuration is written when nothing of
    it will change any more.
    """
    cfg, parts, resumed = opened.cfg, opened.parts, opened.resumed
    micro = resumed.content.get("micro_batch_size") if resumed else None
    machine = {
        "device": parts.machine.device.type,
        "precision": parts.machine.precision,
        "compile": parts.machine.compile,
    }
    cfg_of_all = {**cfg, **machine}
    told = {
        "config": yaml.safe_dump(cfg_of_all),
        "checkpoint": str(resumed.path) if resumed else None,
        "micro_batch_size": micro,
        "fingerprint": store.fingerprint,
        "run": str(opened.run.path),
    }
    ranks = workers.join(told, parts.machine.device)
    train_step = joined(train_step, state, cfg_of_all, ranks, micro)
    averaged = ema_denoiser(parts.denoiser, state)
    preview = build_preview(cfg, parts)
    if cfg["budget"] is not None and opened.resumed is None:
        seconds = partial(preview.seconds, averaged)
        cfg, train_step = budget.applied(cfg, context, opened.run, train_step, state, seconds)
    at_once, path = train_step.settings.micro_batch_size, opened.run.path
    measurements = build_measurements(cfg, parts, store, averaged, at_once, path)
    profile = Profile(path / "profile", parts.machine.device) if cfg["profile"] else None
    if profile is not None:
        measurements.append(Measurement(1, "profile", profile))
    ranks.first([(look.every, look.what) for look in measurements])
    opened.run.write_config(yaml.safe_dump(cfg, sort_keys=False))
    return Ready(cfg, store, train_step, state, preview, averaged, measurements, profile)


def _trained(opened: Opened, context: Context, workers: Workers, ready: Ready, result: dict[str, Any]) -> float:
    """Stage 5. Only here a signal is no more than a flag: from now on there are steps worth saving."""
    cfg, run, state, training = ready.cfg, opened.run, ready.state, ready.cfg["training"]
    progress = opened.resumed.content.get("progress") if opened.resumed else None
    _announce(opened, ready, bool(progress and progress["pending"]))
    cadence = Cadence(**{field.name: training[field.name] for field in fields(Cadence)})
    goal = objective(cfg)
    content = run_content(cfg, opened.parts.machine, ready.train_step, ready.store)
    with (
        Signals("flag") as signals,
        build_journal(cfg, context.choices, run.path, state.step, work_of(opened.parts, opened.num_ranks)) as journal,
        ready.profile if ready.profile is not None else nullcontext(),
    ):

        def interrupted() -> bool:
            """Also for a signal to another rank."""
            if ready.train_step.ranks.any(bool(signals)):
                signals.note()
            return bool(signals)

        sample = PreviewCallback(run, journal, ready.averaged, ready.preview)
        saving = CheckpointCallback(run, content, training["keep_checkpoints"], ready.train_step)
        callbacks = Callbacks(
            sample, saving.save, saving.reload, saving.dump, saving.newest,
            interrupted, ready.measurements,
        )  # fmt: skip
        with interruptible(ready.averaged, lambda: bool(signals)):
            last = train(
                ready.train_step, state, cadence, journal, callbacks, progress=progress,
                on_nonfinite=training["on_nonfinite"], keep_best=goal, noise_scale=training["noise_scale"],
            )  # fmt: skip
        last = last or last_logged(run.path)  # of a run that was already at its end
        result.update(step=state.step, metrics=last)
        journal.ended("done" if state.step >= cadence.num_steps else "interrupted", last)
    if state.step < cadence.num_steps:
        how = "by a signal at step %d" if signals else "at step %d as asked"
        log.info(f"stopped {how}; go on with: ddpm-train resume=%s", state.step, run.path)
    if signals and state.step < cadence.num_steps:
        raise SystemExit(signals.exit_code)
    if context.says_folder:
        if (grid := run.sample_path(state.step)).exists():
            print(f"samples: {grid}")
        print(run.path)
    return last.get(goal.name if goal else "loss", math.nan)


def _announce(opened: Opened, ready: Ready, pending: bool) -> None:
    """`pending`: what follows the checkpoint's step was not finished."""
    path, state, store, machine = opened.run.path, ready.state, ready.store, opened.parts.machine
    step, end = state.step, ready.cfg["training"]["num_steps"]
    if step >= end and not pending:
        further = f"ddpm-train resume={path} training.num_steps={2 * step}"
        log.info("nothing is left to do: %s is at step %d of %d; to train further: %s", path, step, end, further)
        return
    shape, parameters = "x".join(map(str, store.item_shape)), sum(p.numel() for p in state.network.parameters())
    log.info(
        "%s %s: %s %s of %s, %s parameters, %s in %s, steps %d to %d",
        "resuming" if step else "training", path, f"{len(store):,}", store.medium.many, shape,
        f"{parameters:,}", machine.device, machine.precision, step, end,
    )  # fmt: skip
    if told := ready.train_step.lr_told(step):
        log.info("%s", told)
    images_seen = end * ready.cfg["training"]["batch_size"]
    if told := repeated(len(store), store.medium.many, images_seen):
        log.warning("%s", told)
    if told := lopsided(ready.train_step.denoiser, ready.train_step.loss):
        log.warning("%s", told)
    if machine.compile:
        log.info("compiling the network, about a minute; compile=false skips it")
