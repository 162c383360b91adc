"""The configuration inside a checkpoint comes from whoever wrote the file: it is checked like a command line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm_cli.errors import UserError
from ddpm_cli.ranges import rule_for
from ddpm_cli.targets import GROUP_MODULES, is_own
from ddpm_cli.validation import shown

_NEEDED = {"dataset": ("channels", "image_size"), "model": ("in_channels",)}
_NEEDED |= {"schedule": (), "prediction": (), "variance": ()}


def check_stored(config: Any, path: Path | str) -> None:
    """UserError unless the configuration has the groups that a network is built from, and values in their ranges.

    What its `_target_`s may name is checked where they are looked up.
    """
    for group, keys in _NEEDED.items():
        node = config.get(group) if isinstance(config, dict) else None
        if not isinstance(node, dict) or any(key not in node for key in ("_target_", *keys)):
            raise UserError(
                f"{path}: its configuration lacks {group} or a part of it; it was not written by ddpm-train"
            )
    for key, value in _leaves(config):
        rule = rule_for(key, None)
        try:
            rule(value)
        except (ValueError, TypeError, OverflowError):
            raise UserError(f"{path}: its {key} must be {rule.text}, got {shown(value)}") from None


def _leaves(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, without groups whose code is the user's: our ranges are not for their arguments."""
    for key, value in config.items():
        if key in GROUP_MODULES and isinstance(value, dict) and not is_own(key, value.get("_target_")):
            continue
        yield from _inner(str(key), value)


def _inner(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _inner(f"{path}.{key}", inner)
    else:
        yield path, value
