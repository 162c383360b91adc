"""The YAML files of the commands: where they are, which groups and keys they have, and what the help says of them."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml


def config_dir() -> str:
    """The folder of the YAML files: inside the package in a wheel, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    packaged = here / "configs"
    return str(packaged if packaged.is_dir() else here.parent / "configs")


def knobs_text(config_name: str) -> str:
    """The knobs of a primary configuration as its file explains them, for --help."""
    text = Path(config_dir(), f"{config_name}.yaml").read_text(encoding="utf-8")
    knobs = text.partition("\n\n")[2].partition("\nhydra:")[0]
    return knobs.rstrip().replace("$", "$$")  # Hydra substitutes $NAME in the help


def options_text(config_name: str) -> str:
    """A line for each group of a primary configuration: its options, the default in brackets."""
    lines = []
    for group, default in primary_groups(config_name).items():
        options = ", ".join(f"[{name}]" if name == default else name for name in options_of(group))
        if options:
            lines.append(f"{group + '=':<12} {options}")
    return "\n".join(lines)


def options_of(group: str) -> list[str]:
    """The names of a group's own files."""
    return sorted(path.stem for path in Path(config_dir(), group).glob("*.yaml"))


@cache
def _primary(config_name: str) -> dict[str, Any]:
    return yaml.safe_load(Path(config_dir(), f"{config_name}.yaml").read_text(encoding="utf-8"))


def primary_groups(config_name: str) -> dict[str, str | None]:
    """The groups a command knows, with their default options, as its defaults list has them."""
    entries = [entry for entry in _primary(config_name)["defaults"] if isinstance(entry, dict)]
    return {group: option for entry in entries for group, option in entry.items() if not group.startswith("override ")}


def primary_keys(config_name: str) -> dict[str, Any]:
    """The part of a command's configuration that is no group: a tree of its keys."""
    return {key: value for key, value in _primary(config_name).items() if key not in ("defaults", "hydra")}
