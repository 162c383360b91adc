"""A training run from its configuration to its folder: what ddpm-train does once its command line is validated."""

import logging
import math
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from ddpm_cli import __version__, budget, build, checkpoint, plan, resume, runtime
from ddpm_cli.argv import place_of
from ddpm_cli.assembly import assembled, fitted
from ddpm_cli.config import Context
from ddpm_cli.data.store import Store
from ddpm_cli.errors import UserError
from ddpm_cli.facts import with_facts
from ddpm_cli.fleet import Fleet, check_launched
from ddpm_cli.follower import follow_launched
from ddpm_cli.keeping import Checkpoints, Sampler, load_state, preview_of
from ddpm_cli.result import hparams, last_metrics, recorded
from ddpm_cli.run_dir import checkpoints, resume_point, run_of
from ddpm_cli.run_files import RunDir
from ddpm_cli.runtime import PRECISIONS, Signals
from ddpm_cli.stored import check_stored
from ddpm_cli.training.journal import Journal
from ddpm_cli.training.loop import Cadence, Keeper, train
from ddpm_cli.training.state import TrainState
from ddpm_cli.training.step import Trainer

log = logging.getLogger("ddpm_cli")


@dataclass(frozen=True)
class Past:
    """The checkpoint a run goes on from, and the damaged ones that were passed over."""

    path: Path
    content: dict[str, Any]
    bad: list[Path]


def run_training(cfg: dict[str, Any], context: Context) -> float:
    """Trains as configured and returns the final training loss; the last line on stdout is the run's folder."""
    place = place_of(os.environ)
    if cfg["dry_run"]:
        for key, value in plan.describe(with_facts(cfg)).items() if place is None or place.rank == 0 else ():
            print(f"{key}: {value}")
        return math.nan
    if place is not None and place.rank > 0:
        return follow_launched(place)
    with Fleet(place) as fleet:
        check_launched(place, cfg, context)
        return _run(cfg, context, fleet)


def _run(cfg: dict[str, Any], context: Context, fleet: Fleet) -> float:
    found = resume_point(cfg["resume"], context.run_dir)
    if found is None:
        cfg = with_facts(cfg)
        plan.describe(cfg)  # what only the built objects know to be wrong is refused before a folder is claimed
        run = RunDir.create(context.run_dir)
    else:
        run = RunDir.open(context.run_dir) if run_of(found) is not None else RunDir.create(context.run_dir)
    try:
        past = None
        if found is not None:
            past = _past(cfg, found, run)
            cfg = resume.merge(past.content["config"], cfg, context.overrides)
            if changed := resume.changes(past.content["config"], cfg, context.overrides):
                log.info("changed since the checkpoint: %s", ", ".join(changed))
        with recorded(run, context) as result:
            return _train(cfg, context, run, past, result, fleet)
    except UserError:
        if found is None and not context.multirun:
            run.withdraw()
        raise
    finally:
        run.close()


def _past(cfg: dict[str, Any], found: Path, run: RunDir) -> Past:
    """The checkpoint named, or the newest good one of the run: looked for under the run's lock, so that it stays."""
    if Path(cfg["resume"]).expanduser().is_file():
        past = Past(found, checkpoint.load(found), [])
    else:
        past = Past(*checkpoint.first_good(checkpoints(run.path), run.path))
    check_stored(past.content["config"], past.path)
    if past.content.get("precision") not in PRECISIONS:
        raise UserError(f"{past.path} does not say its precision; it cannot be resumed, only used by init=")
    return past


def _train(
    cfg: dict[str, Any], context: Context, run: RunDir, past: Past | None, result: dict[str, Any], fleet: Fleet
) -> float:
    content = past.content if past else None
    runtime.choose_determinism(cfg["deterministic"])
    store = build.build_data(cfg)
    fleet.start(plan.choose_devices(cfg), run.path)
    denoiser, machine, loss, timesteps, state = assembled(cfg, store, content["precision"] if content else None)
    _start(state, cfg, run, past, store)
    if machine.compile:
        denoiser.network.compile()
    micro = (content or {}).get("micro_batch_size")
    trainer = build.build_trainer(cfg, denoiser, store, machine.device, loss, timesteps)
    trainer = fitted(replace(trainer, ranks=fleet.join(cfg, machine, micro, store.fingerprint)), state, cfg, micro)
    trainer.ranks.share(state)
    averaged = build.ema_denoiser(denoiser, state)
    preview = preview_of(cfg, averaged, store.item_shape, machine.device)
    if cfg["budget"] is not None and past is None:
        cfg, trainer = budget.planned(cfg, context, run, trainer, state, preview, averaged)
    run.write_config(yaml.safe_dump(cfg, sort_keys=False))
    keeping = Checkpoints(run, _header(cfg, machine, trainer, store), cfg["training"]["keep_checkpoints"], trainer)
    progress = content.get("progress") if content else None
    _announce(cfg, run, state, store, machine, bool(progress and progress["pending"]))
    cadence = _cadence(cfg)
    with Signals() as signals, Journal(run.path, state.step, cadence.num_steps) as journal:
        journal.text("config", f"```yaml\n{yaml.safe_dump(cfg, sort_keys=False)}\n```")
        interrupted = partial(fleet.ending, signals)
        sample = Sampler(run, journal, averaged, preview, interrupted)
        keeper = Keeper(sample, keeping.save, keeping.reload, keeping.dump, keeping.newest, interrupted)
        last = train(
            trainer, state, cadence, journal, keeper, progress=progress,
            on_nonfinite=cfg["training"]["on_nonfinite"], keep_best=cfg["training"]["keep_best"] == "loss",
        )  # fmt: skip
        last = last or last_metrics(run)
        result.update(step=state.step, metrics=last)
        if state.step == cadence.num_steps:
            journal.hparams(hparams(cfg, context), {"final/loss": last.get("loss", math.nan)})
    return _close(run, state, cadence, signals, last)


def _cadence(cfg: dict[str, Any]) -> Cadence:
    keys = ("num_steps", "stop_at", "log_every", "sample_every", "checkpoint_every")
    return Cadence(**{key: cfg["training"][key] for key in keys})


def _start(state: TrainState, cfg: dict[str, Any], run: RunDir, past: Past | None, store: Store) -> None:
    """Loads the resumed state, or the weights that `init` names, strictly."""
    if past is not None:
        load_state(state, past.content, past.path)
        run.set_aside(state.step, past.bad)
        before = past.content.get("data", {}).get("fingerprint")
        if before != store.fingerprint:
            log.warning("the data set is not the one of the checkpoint (%s, was %s)", store.fingerprint, before)
    elif cfg["init"] is not None:
        path = checkpoint.find(cfg["init"], key="init")
        weights = checkpoint.load(path)["emas"].get("ema")
        if weights is None:
            raise UserError(f"init={cfg['init']}: {path} holds no averaged weights")
        build.load_weights(state.network, weights, path)
        for ema in state.emas.values():
            ema.network.load_state_dict(weights)


def _header(cfg: dict[str, Any], machine: plan.Machine, trainer: Trainer, store: Store) -> dict[str, Any]:
    """What a checkpoint holds beside the state."""
    auto = cfg["training"]["micro_batch_size"] == "auto"
    return {
        "config": cfg,
        "precision": machine.precision,
        "micro_batch_size": trainer.settings.micro_batch_size if auto else None,
        "version": __version__,
        "torch": str(torch.__version__),
        "data": {"name": store.name, "fingerprint": store.fingerprint, "class_names": list(store.class_names)},
    }


def _announce(
    cfg: dict[str, Any], run: RunDir, state: TrainState, store: Store, machine: plan.Machine, pending: bool
) -> None:
    """`pending`: what follows the checkpoint's step was not finished."""
    step, end = state.step, cfg["training"]["num_steps"]
    if step >= end and not pending:
        further = f"ddpm-train resume={run.path} training.num_steps={2 * step}"
        log.info("nothing is left to do: %s is at step %d of %d; to train further: %s", run.path, step, end, further)
        return
    log.info(
        "%s %s: %s images of %s, %s parameters, %s in %s, steps %d to %d",
        "resuming" if step else "training",
        run.path,
        f"{len(store):,}",
        "x".join(map(str, store.item_shape)),
        f"{sum(p.numel() for p in state.network.parameters()):,}",
        machine.device,
        machine.precision,
        step,
        end,
    )


def _close(run: RunDir, state: TrainState, cadence: Cadence, signals: Signals, last: dict[str, float]) -> float:
    if signals and state.step < cadence.num_steps:
        log.info("stopped by a signal at step %d; go on with: ddpm-train resume=%s", state.step, run.path)
        raise SystemExit(signals.exit_code)
    if state.step < cadence.num_steps:
        log.info("stopped at step %d as asked; go on with: ddpm-train resume=%s", state.step, run.path)
    grid = run.sample_path(state.step)
    if grid.exists():
        print(f"samples: {grid}")
    print(run.path)
    return last.get("loss", math.nan)
