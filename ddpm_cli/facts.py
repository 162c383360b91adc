"""What a configuration leaves to files: read once when a run begins, and from then on a part of it."""

from pathlib import Path
from typing import Any

import numpy as np

from ddpm_cli.data.listing import count_classes
from ddpm_cli.errors import UserError

Config = dict[str, Any]


def with_facts(cfg: Config) -> Config:
    """The configuration with what only files know filled in: the number of classes of an image folder, and the
    numbers of a schedule that is read from a file."""
    if "path" in cfg["schedule"] and cfg["schedule"]["values"] is None:
        cfg = {**cfg, "schedule": {**cfg["schedule"], "values": read_table(Path(cfg["schedule"]["path"]))}}
    if cfg["dataset"].get("num_classes", 0) is not None:
        return cfg
    num_classes = count_classes(Path(cfg["dataset"]["root"]))
    model = {**cfg["model"], "num_classes": num_classes}
    return {**cfg, "dataset": {**cfg["dataset"], "num_classes": num_classes}, "model": model}


def read_table(path: Path) -> list[float]:
    """The numbers for t = 1..T: of a .npy file, or of a text file with one a line (or all in one, with commas)."""
    try:
        numbers = np.asarray(np.load(path, allow_pickle=False) if path.suffix == ".npy" else _rows(path), np.float64)
    except (OSError, EOFError, TypeError, ValueError) as error:
        raise UserError(f"schedule.path: cannot read numbers from {path}: {error}") from error
    if numbers.ndim != 1 or len(numbers) == 0:
        raise UserError(f"schedule.path: {path} must hold one number for each t, has shape {numbers.shape}")
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        row = wrong[0]
        raise UserError(
            f"schedule.path: {path} must hold finite numbers, row {row + 1} has {numbers[row]:g}; correct it"
        )
    return [float(number) for number in numbers]


def _rows(path: Path) -> list[Any]:
    """A number a line, lists of them where a line has several, or the numbers of the only line."""
    lines = [line.replace(",", " ").split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = lines[0] if len(lines) == 1 else [line[0] if len(line) == 1 else line for line in lines]
    if len({len(line) for line in lines}) > 1:
        raise ValueError("its lines hold different amounts of numbers")
    return rows
