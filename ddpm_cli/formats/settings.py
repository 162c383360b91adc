"""What is known of another program's model before its weights are read. No torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_cli.errors import UserError

Config = dict[str, Any]
MOST_TIMESTEPS = 10**6


@dataclass(frozen=True)
class Settings:
    """The file of weights, and what they are of."""

    weights: Path
    config: Config  # as a checkpoint of ours holds it
    class_names: list[str]
    step: int


def read_json(file: Path) -> Config:
    """The settings in a file; UserError where it holds none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no settings of a model")
    return content


def unknown_data(channels: int, image_size: int, num_classes: int) -> Config:
    """The data of which nobody says what they were but for their shape."""
    return {
        "_target_": "ddpm_cli.data.image_folder.image_folder",
        "root": None,
        "cache": None,
        "split": "all",
        "channels": channels,
        "image_size": image_size,
        "num_classes": num_classes,
        "on_error": "stop",
        "flip": False,
    }
