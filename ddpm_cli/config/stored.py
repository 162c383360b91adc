"""The configuration inside a checkpoint comes from whoever wrote the file: it is checked like a command line."""

from pathlib import Path
from typing import Any

from ddpm_cli.config.knobs import rule_for
from ddpm_cli.config.messages import shown
from ddpm_cli.config.targets import GROUP_MODULES, is_own
from ddpm_cli.errors import UserError
from ddpm_cli.system import tree

_NEEDED: dict[str, tuple[str, ...]] = {"model": ("in_channels",), "schedule": (), "prediction": (), "variance": ()}
_OF_IMAGES = {"dataset": ("channels", "image_size")}
_OF_LATENTS = _OF_IMAGES | {"representation": ("scale_factor", "latent_channels", "factor", "sha256", "dtype")}
_OF_SOUNDS = {"dataset": ("channels", "num_samples", "sample_rate"), "representation": ()}


def check_stored(config: Any, path: Path | str) -> None:
    """UserError unless the configuration has the groups that a network is built from, and values in their ranges.

    What its `_target_`s may name is checked where they are looked up.
    """
    seen = config.get("representation") if isinstance(config, dict) else None
    latents = isinstance(seen, dict) and "autoencoder" in seen
    shape = _OF_IMAGES if seen is None else _OF_LATENTS if latents else _OF_SOUNDS
    for group, keys in (_NEEDED | shape).items():
        node = config.get(group) if isinstance(config, dict) else None
        if not isinstance(node, dict) or any(key not in node for key in ("_target_", *keys)):
            raise UserError(
                f"{path}: its configuration lacks {group} or a part of it; it was not written by ddpm-train"
            )
    # Ranges are ours, so they are not for the arguments of a user's own class.
    own = {group: node for group, node in config.items() if not _is_foreign(group, node)}
    for key, value in tree.leaves(own, into=(dict,)):
        rule = rule_for(key, None)
        try:
            rule(value)
        except (ValueError, TypeError, OverflowError):
            raise UserError(f"{path}: its {key} must be {rule.text}, got {shown(value)}") from None


def _is_foreign(group: str, node: Any) -> bool:
    return group in GROUP_MODULES and isinstance(node, dict) and not is_own(group, node.get("_target_"))
