"""The trackers that a configuration names, and the journal that tells them how the run goes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ddpm_cli.results.hparams import hparams
from ddpm_cli.training.journal import Journal, Work
from ddpm_cli.training.trackers.aside import Aside, Ledger
from ddpm_cli.training.trackers.base import Tracker, Trackers
from ddpm_cli.training.trackers.mlflow import MLflow
from ddpm_cli.training.trackers.tensorboard import Board
from ddpm_cli.training.trackers.wandb import WandB

Config = dict[str, Any]


def build_journal(cfg: Config, choices: Mapping[str, str | None], run: Path, step: int, work: Work) -> Journal:
    """The journal of a run that goes on from `step`, whose trackers have been told what it is."""
    trackers = Trackers({name: _MADE[name](cfg, run, step) for name in cfg["trackers"]})
    journal = Journal(run, step, cfg["training"]["num_steps"], work, trackers)
    trackers.begin(hparams(cfg, choices), yaml.safe_dump(cfg, sort_keys=False), step)
    return journal


def _board(cfg: Config, run: Path, step: int) -> Tracker:
    return Board(run / "tensorboard", step)


def _wandb(cfg: Config, run: Path, step: int) -> Tracker:
    knobs = {key: cfg["tracking"][key] for key in ("project", "entity", "mode")}
    return Aside("wandb", lambda: WandB(run, _ledger(run, "wandb"), _name(cfg, run), **knobs))


def _mlflow(cfg: Config, run: Path, step: int) -> Tracker:
    knobs = {key: cfg["tracking"][key] for key in ("project", "uri")}
    return Aside("mlflow", lambda: MLflow(_ledger(run, "mlflow"), _name(cfg, run), **knobs))


_MADE: dict[str, Callable[[Config, Path, int], Tracker]] = {"tensorboard": _board, "wandb": _wandb, "mlflow": _mlflow}


def _ledger(run: Path, name: str) -> Ledger:
    return Ledger(run / "trackers" / f"{name}.json")


def _name(cfg: Config, run: Path) -> str:
    """What was typed, else the end of the folder's path: day and time, or the time of a sweep and the job's number."""
    return cfg["name"] or "/".join(run.parts[-2:])
