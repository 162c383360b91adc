"""Averages of the weights: those that a run keeps, and those that are rebuilt from its snapshots afterwards."""

from pathlib import Path
from typing import Any

import torch

from ddpm_cli.build.instantiate import make
from ddpm_cli.errors import UserError
from ddpm_cli.run_dir import snapshots
from ddpm_cli.run_dir.find import run_of
from ddpm_cli.training.ema import Averaging, gamma_of, mixing

Weights = dict[str, torch.Tensor]
_CONSTANT = "ddpm_cli.training.ema.Constant"  # what a configuration without a _target_ was written for


def build_averaging(cfg: dict[str, Any]) -> Averaging:
    return make("ema", {"_target_": _CONSTANT, **cfg["ema"]}, cfg.get("trust", []))


def rebuilt(ckpt: Path, step: int, length: float) -> Weights:
    """The average of this length that a run would have kept up to the checkpoint's step (Karras et al. 2024, Section
    3.2), float32; UserError where the run has no snapshots."""
    run = run_of(ckpt)
    files = snapshots.files(run, step) if run is not None else []
    if len(files) < 2:
        raise UserError(
            f"weights=ema@{length:g} is made of the snapshots of a run that was trained with ema=power; {ckpt} has none"
        )
    kept = [
        (c["step"], width, c["averages"][name])
        for c in map(snapshots.load, files)
        for name, width in c["lengths"].items()
    ]
    shares = mixing([(float(at), gamma_of(width)) for at, width, _ in kept], (float(step), gamma_of(length))).tolist()
    newest = kept[-1][2]
    return {
        key: _mixed([average[key] for _, _, average in kept], shares) if value.is_floating_point() else value.clone()
        for key, value in newest.items()
    }


def _mixed(tensors: list[torch.Tensor], shares: list[float]) -> torch.Tensor:
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, share in zip(tensors, shares, strict=True):
        total.add_(tensor.double(), alpha=share)
    return total.float()
