"""A training run from its configuration to its folder: what ddpm-train does once its command line is validated."""

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import yaml

from ddpm_cli import __version__, build, checkpoint, plan, resume
from ddpm_cli.config import Context
from ddpm_cli.pictures import save_png
from ddpm_cli.preview import Preview, grid_of, strip_of
from ddpm_cli.run_dir import find_checkpoint, resume_point
from ddpm_cli.run_files import RunDir, write_summary
from ddpm_cli.runtime import PRECISIONS, Signals
from ddpm_cli.training.journal import Journal
from ddpm_cli.training.loop import Cadence, train
from ddpm_cli.training.state import TrainState

log = logging.getLogger("ddpm_cli")


def run_training(cfg: dict[str, Any], context: Context) -> float:
    """Trains as configured and returns the final training loss; the last line on stdout is the run's folder."""
    if cfg["dry_run"]:
        for key, value in plan.describe(build.with_facts(cfg)).items():
            print(f"{key}: {value}")
        return math.nan
    started_from = resume_point(cfg["resume"], context.run_dir)
    content = None
    if started_from is not None:
        content = checkpoint.load(started_from)
        cfg = resume.merge(content["config"], cfg, context.overrides)
        run = RunDir.open(context.run_dir)
    else:
        cfg = build.with_facts(cfg)
        plan.describe(cfg)  # what only the built objects know to be wrong is refused before a folder is claimed
        run = RunDir.create(context.run_dir)
    try:
        with recorded(run, context) as result:
            return _train(cfg, context, run, content, result)
    finally:
        run.close()


def _train(
    cfg: dict[str, Any], context: Context, run: RunDir, content: dict[str, Any] | None, result: dict[str, Any]
) -> float:
    store = build.build_data(cfg)
    torch.manual_seed(cfg["seed"])  # of the initial weights
    denoiser = build.build_denoiser(cfg)
    flops = plan.forward_flops(denoiser.network, store.item_shape)
    machine = plan.choose_machine(cfg, flops, content["precision"] if content else None)
    layout = torch.channels_last if machine.device.type == "cuda" else torch.contiguous_format
    denoiser.network.to(machine.device).to(memory_format=layout)  # type: ignore[call-overload]
    denoiser.amp_dtype = PRECISIONS[machine.precision]
    loss, timesteps = build.build_loss(cfg), build.make("timesteps", cfg["timesteps"], cfg.get("trust", []))
    state = build.build_state(cfg, denoiser.network, machine.device, machine.precision, loss, timesteps)
    _start(state, cfg, content)
    if machine.compile:
        denoiser.network.compile()
    trainer = build.build_trainer(cfg, denoiser, store, machine.device, loss, timesteps)
    run.write_config(yaml.safe_dump(cfg, sort_keys=False))
    header = {
        "config": cfg,
        "precision": machine.precision,
        "version": __version__,
        "torch": str(torch.__version__),
        "data": {"name": store.name, "fingerprint": store.fingerprint, "class_names": list(store.class_names)},
    }
    _announce(cfg, run, state, store, machine, denoiser)
    training = cfg["training"]
    cadence = Cadence(
        **{k: training[k] for k in ("num_steps", "stop_at", "log_every", "sample_every", "checkpoint_every")}
    )
    with Signals() as signals, Journal(run.path, state.step, cadence.num_steps) as journal:
        journal.text("config", f"```yaml\n{yaml.safe_dump(cfg, sort_keys=False)}\n```")
        last = train(
            trainer,
            state,
            cadence,
            journal,
            sample=_Sampler(cfg, run, journal, build.ema_denoiser(denoiser, state), store.item_shape, machine.device),
            save=lambda s: _save(run, s, header, training["keep_checkpoints"]),
            interrupted=lambda: bool(signals),
        )
        last = last or _last_metrics(run)
        result.update(step=state.step, metrics=last)
        if state.step == cadence.num_steps:
            journal.hparams(_hparams(cfg, context), {"final/loss": last.get("loss", math.nan)})
    if signals:
        log.info("stopped by a signal at step %d; go on with: ddpm-train resume=%s", state.step, run.path)
        result["status"] = "interrupted"
        raise SystemExit(signals.exit_code)
    _close(cfg, run, state, cadence)
    return last.get("loss", math.nan)


def _start(state: TrainState, cfg: dict[str, Any], content: dict[str, Any] | None) -> None:
    """Loads the resumed state, or the weights that `init` names, strictly."""
    if content is not None:
        build.load_weights(state.network, content["network"], "the checkpoint")
        state.load_state_dict(content)
    elif cfg["init"] is not None:
        path = find_checkpoint(cfg["init"])
        weights = checkpoint.load(path)["emas"]["ema"]
        build.load_weights(state.network, weights, path)
        for ema in state.emas.values():
            ema.network.load_state_dict(weights)


def _save(run: RunDir, state: TrainState, header: dict[str, Any], keep: int) -> None:
    run.save_checkpoint(state.step, {**header, **state.state_dict()}, keep)


class _Sampler:
    """Draws the preview at a sampling step and puts it into the run's folder and TensorBoard."""

    def __init__(self, cfg, run: RunDir, journal: Journal, denoiser, item_shape: tuple[int, ...], device: torch.device):
        self.run, self.journal, self.denoiser = run, journal, denoiser
        classes = build.null_label(denoiser.network)
        self.preview = Preview(
            build.build_sampler(cfg), item_shape, cfg["training"]["num_samples"], classes, cfg["seed"], device
        )

    def __call__(self, state: TrainState) -> None:
        images, strip = self.preview(self.denoiser)
        grid = grid_of(images, self.preview.num_classes)
        save_png(grid, self.run.sample_path(state.step))
        self.journal.picture("samples/grid", grid, state.step)
        self.journal.picture("samples/from_noise_to_image", strip_of(strip), state.step)


def _announce(cfg, run: RunDir, state: TrainState, store, machine: plan.Machine, denoiser) -> None:
    parameters = sum(p.numel() for p in denoiser.network.parameters())
    log.info(
        "%s %s: %s images of %s, %s parameters, %s in %s, steps %d to %d",
        "resuming" if state.step else "training",
        run.path,
        f"{len(store):,}",
        "x".join(map(str, store.item_shape)),
        f"{parameters:,}",
        machine.device,
        machine.precision,
        state.step,
        cfg["training"]["num_steps"],
    )


def _close(cfg, run: RunDir, state: TrainState, cadence: Cadence) -> None:
    if state.step < cadence.num_steps:
        log.info("stopped at step %d as asked; go on with: ddpm-train resume=%s", state.step, run.path)
    grid = run.sample_path(state.step)
    if grid.exists():
        print(f"samples: {grid}")
    print(run.path)


@contextmanager
def recorded(run: RunDir, context: Context) -> Iterator[dict[str, Any]]:
    """Writes result.json however the run ends, and in a sweep the summary of all jobs so far."""
    result: dict[str, Any] = {"status": "running", "overrides": context.overrides, "metrics": {}}
    started = time.time()
    try:
        yield result
        result["status"] = "done"
    except BaseException as error:
        if result["status"] == "running":
            result.update(status="failed", error=f"{type(error).__name__}: {error}")
        raise
    finally:
        result["seconds"] = round(time.time() - started, 1)
        try:
            run.write_result(result)
            if context.multirun:
                write_summary(run.path.parent)
        except OSError as error:  # must not hide what ended the run
            log.warning("could not write the result of %s: %s", run.path, error)


def _last_metrics(run: RunDir) -> dict[str, float]:
    """The last line of metrics.jsonl, for a run that was already at its end."""
    path = run.path / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return json.loads(lines[-1]) if lines else {}


def _hparams(cfg: dict[str, Any], context: Context) -> dict[str, Any]:
    """What runs are compared by in TensorBoard's HParams: the choices of all groups and the values typed."""
    typed = dict(o.lstrip("+").split("=", 1) for o in context.overrides if "=" in o)
    choices = {k: v for k, v in context.choices.items() if v is not None and "/" not in k}
    return {**choices, "seed": cfg["seed"], "optimizer.lr": cfg["optimizer"]["lr"], **typed}
