"""The YAML files of the commands: where they are, and which groups and keys they have."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

# What a trained network goes with; a data set picks presets of them.
OF_WEIGHTS = frozenset(("dataset", "model", "schedule", "prediction", "variance"))


def config_dir() -> str:
    """The folder of the YAML files: inside the package in a wheel, beside it in a checkout."""
    here = Path(__file__).resolve().parent.parent
    packaged = here / "configs"
    return str(packaged if packaged.is_dir() else here.parent / "configs")


def options_of(group: str) -> list[str]:
    """The names of a group's own files."""
    return sorted(path.stem for path in Path(config_dir(), group).glob("*.yaml"))


def primary_files(config_name: str) -> list[Path]:
    """A command's own file, and those of `_base` that its defaults list takes in."""
    own = Path(config_dir(), f"{config_name}.yaml")
    entries = yaml.safe_load(own.read_text(encoding="utf-8"))["defaults"]
    shared = [str(entry).partition("@")[0] for entry in entries if str(entry).startswith("_base/")]
    return [own, *(Path(config_dir(), f"{name}.yaml") for name in shared)]


@cache
def _primary(config_name: str) -> dict[str, Any]:
    own, *shared = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in primary_files(config_name)]
    return own | {key: value for file in shared for key, value in file.items()}


def primary_groups(config_name: str) -> dict[str, str | None]:
    """The groups a command knows, with their default options, as its defaults list has them."""
    entries = [entry for entry in _primary(config_name)["defaults"] if isinstance(entry, dict)]
    return {group: option for entry in entries for group, option in entry.items() if not group.startswith("override ")}


def primary_keys(config_name: str) -> dict[str, Any]:
    """The part of a command's configuration that is no group: a tree of its keys."""
    return {key: value for key, value in _primary(config_name).items() if key not in ("defaults", "hydra")}


def chosen_by_experiment(name: str) -> frozenset[str] | None:
    """The groups of which an experiment's file chooses an option; None where that stands in other files too."""
    file = Path(config_dir(), "experiment", f"{name}.yaml")
    if not file.is_file():
        return None
    entries = yaml.safe_load(file.read_text(encoding="utf-8")).get("defaults", [])
    if not all(isinstance(entry, dict) for entry in entries):
        return None
    return frozenset(key.removeprefix("override /") for entry in entries for key in entry)
