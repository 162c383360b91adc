"""Going on with a run: which of the newly typed settings may change it."""

import copy
from collections.abc import Iterator
from typing import Any

from ddpm_cli.config import key_of
from ddpm_cli.errors import UserError
from ddpm_cli.remembered import INVOCATION_KEYS
from ddpm_cli.validation import shown

# What the weights and the meaning of a step depend on. A learning rate or a batch size may change; these may not.
FIXED = ("model", "schedule", "prediction", "variance", "dataset")
# Of a data set where it is, not what it is; `values` a schedule reads from a file when the run begins.
_WHERE = ("root", "cache", "download", "values")

Config = dict[str, Any]


def merge(stored: Config, composed: Config, typed: list[str]) -> Config:
    """The stored configuration with the settings typed for this invocation laid over it.

    composed is the whole configuration of this invocation, typed its overrides as written (`key=value`). UserError for
    a change of what the weights depend on; where to find the data may change.
    """
    merged = _completed(copy.deepcopy(stored), composed)
    for override in typed:
        key = key_of(override)
        path = key.split(".")
        if path[0] == "experiment":
            for group in FIXED:
                _refuse_change(group, _facts(composed.get(group)), _facts(stored.get(group)), key)
        elif path[0] == "hydra" or key in INVOCATION_KEYS:
            continue
        elif key == "budget":
            if composed["budget"] != stored.get("budget"):
                raise UserError(
                    f"{override}: a budget is for the beginning of a run, and this one has its num_steps="
                    f"{stored['training']['num_steps']}; leave it out, or type training.num_steps or training.stop_at"
                )
            merged["budget"] = composed["budget"]
        elif path[0] in FIXED and not (path[0] == "dataset" and path[-1] in _WHERE):
            _refuse_change(key, _facts(_get(composed, path, override)), _facts(_get(stored, path, override)), key)
        else:
            _set(merged, path, copy.deepcopy(_get(composed, path, override)))
    target = "optimizer._target_"
    old = stored.get("optimizer", {}).get("_target_")
    _refuse_change(target, merged["optimizer"]["_target_"], old, "optimizer")
    for key in INVOCATION_KEYS:
        path = key.split(".")
        if (value := _find(composed, path)) is not None or _find(merged, path) is not None:
            _set(merged, path, copy.deepcopy(value))
    return merged


def changes(stored: Config, merged: Config, typed: list[str]) -> list[str]:
    """`seed 0 -> 5` for each value that was typed and is another than the checkpoint's."""
    told = []
    for key in dict.fromkeys(map(key_of, typed)):
        path = key.split(".")
        if key not in INVOCATION_KEYS and path[0] not in ("hydra", "experiment"):
            old, new = dict(_leaves(key, _find(stored, path))), dict(_leaves(key, _find(merged, path)))
            told += [f"{k} {shown(old.get(k))} -> {shown(v)}" for k, v in new.items() if old.get(k) != v]
    return list(dict.fromkeys(told))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}", inner)
    elif path not in INVOCATION_KEYS:
        yield path, value


def _completed(stored: Config, composed: Config) -> Config:
    """Keys that came into being after the checkpoint was written have the values of now; groups stay as they are."""
    for key, value in composed.items():
        if key not in stored:
            stored[key] = copy.deepcopy(value)
        elif isinstance(value, dict) and isinstance(stored[key], dict) and "_target_" not in value:
            _completed(stored[key], value)
    return stored


def _facts(value: Any) -> Any:
    """A group's node without the keys that say where the data is."""
    return {k: v for k, v in value.items() if k not in _WHERE} if isinstance(value, dict) else value


def _refuse_change(what: str, new: Any, old: Any, key: str) -> None:
    if new != old:
        raise UserError(
            f"{what} cannot change on resume: the checkpoint was trained with {_short(old, new)}.\n"
            f"Leave {key} out, or start a new run with init=CHECKPOINT to use its weights"
        )


def _short(old: Any, new: Any) -> str:
    """The old value; of a group its class, and what differs if that is the same."""
    if not isinstance(old, dict) or "_target_" not in old:
        return str(old).rpartition(".")[2] if "ddpm_cli." in str(old) else str(old)[:80]
    name = str(old["_target_"]).rpartition(".")[2]
    if not isinstance(new, dict) or new.get("_target_") != old["_target_"]:
        return name
    differing = [f"{key}={value}" for key, value in old.items() if new.get(key) != value]
    return f"{name} {' '.join(differing)}"[:120]


def _find(config: Config, path: list[str]) -> Any:
    node: Any = config
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    return node


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
