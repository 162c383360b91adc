"""Going on with a run: which checkpoint, and which of the newly typed settings may change it."""

import copy
from typing import Any

from ddpm_cli.errors import UserError

# What the weights and the meaning of a step depend on. A learning rate or a batch size may change; these may not.
FIXED = ("model", "schedule", "prediction", "variance", "dataset")
# Where and how, not what: never taken from the stored configuration.
INVOCATION = ("run_dir", "resume", "init", "dry_run", "device", "devices", "compile", "trust")

Config = dict[str, Any]


def merge(stored: Config, composed: Config, typed: list[str]) -> Config:
    """The stored configuration with the settings typed for this invocation laid over it.

    composed is the whole configuration of this invocation, typed its overrides as written (`key=value`). UserError for
    a change of what the weights depend on; where to find the data may change.
    """
    merged = copy.deepcopy(stored)
    for key in INVOCATION:
        if key in composed:
            merged[key] = composed[key]
    _set(merged, ["training", "stop_at"], composed["training"]["stop_at"])
    for override in typed:
        key = override.lstrip("+~").split("=", 1)[0].split("@")[0]
        path = key.split(".")
        if path[0] in INVOCATION or path[0] in ("hydra", "experiment"):
            continue
        value = _get(composed, path, override)
        if path[0] in FIXED and key not in ("dataset.root", "dataset.cache", "dataset.download"):
            _refuse_change(key, _facts(value), _facts(_get(stored, path, override)))
        else:
            _set(merged, path, copy.deepcopy(value))
    return merged


def _facts(value: Any) -> Any:
    """A group's node without the keys that say where the data is."""
    return (
        {k: v for k, v in value.items() if k not in ("root", "cache", "download")} if isinstance(value, dict) else value
    )


def _refuse_change(key: str, new: Any, old: Any) -> None:
    if new != old:
        raise UserError(
            f"{key} cannot change on resume: the checkpoint was trained with {_short(old)}.\n"
            f"Leave {key} out, or start a new run with init=CHECKPOINT to use its weights"
        )


def _short(value: Any) -> str:
    return (
        str(value["_target_"]).rpartition(".")[2]
        if isinstance(value, dict) and "_target_" in value
        else str(value)[:80]
    )


def _get(config: Config, path: list[str], override: str) -> Any:
    node: Any = config
    for part in path:
        if not isinstance(node, dict) or part not in node:
            raise UserError(f"{override}: the stored run has no key {'.'.join(path)}")
        node = node[part]
    return node


def _set(config: Config, path: list[str], value: Any) -> None:
    node = config
    for part in path[:-1]:
        node = node.setdefault(part, {})
    node[path[-1]] = value
