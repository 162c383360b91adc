"""Snapshots of a run's averages, in its folder `averages/`: half-precision copies, from which averages of other lengths
are rebuilt afterwards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ddpm_cli.errors import UserError
from ddpm_cli.run_dir import checkpoint

FOLDER = "averages"


def save(
    run: Path, step: int, lengths: Mapping[str, float], averages: Mapping[str, Mapping[str, torch.Tensor]]
) -> None:
    """Of each average, by name: its length, and its weights."""
    halved = {
        name: {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
        for name, weights in averages.items()
    }
    (run / FOLDER).mkdir(exist_ok=True)
    checkpoint.save(run / FOLDER / f"step_{step:08d}.pt", {"step": step, "lengths": dict(lengths), "averages": halved})


def files(run: Path, step: int) -> list[Path]:
    """Those of the run's first `step` steps, in order."""
    found = sorted((run / FOLDER).glob("step_*.pt"))
    return [file for file in found if int(file.stem.partition("_")[2]) <= step]


def load(file: Path) -> dict[str, Any]:
    """step, lengths and averages; UserError for a damaged file. Tensors stay in the file until they are used, as all
    snapshots of a run together may be larger than memory."""
    checkpoint.verify(file)
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(content, dict) or not {"step", "lengths", "averages"} <= content.keys():
        raise UserError(f"{file} is no snapshot of a run's averages; remove it")
    return content
