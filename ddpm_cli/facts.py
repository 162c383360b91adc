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
    """The numbers for t = 1..T: of a .npy file, or of a text file with one a line (or separated by commas)."""
    try:
        if path.suffix == ".npy":
            numbers = np.load(path, allow_pickle=False)
        else:
            numbers = np.array(path.read_text(encoding="utf-8").replace(",", " ").split(), dtype=np.float64)
    except (OSError, ValueError) as error:
        raise UserError(f"schedule.path: cannot read numbers from {path}: {error}") from error
    if numbers.ndim != 1 or len(numbers) == 0 or not np.isfinite(numbers.astype(np.float64)).all():
        raise UserError(f"schedule.path: {path} must hold a list of finite numbers, has shape {numbers.shape}")
    return [float(number) for number in numbers]
