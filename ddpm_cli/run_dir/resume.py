"""Going on with a run: which of the newly typed settings may change it."""

import copy
from typing import Any

from ddpm_cli.config.messages import shown
from ddpm_cli.config.overrides import key_of
from ddpm_cli.errors import UserError
from ddpm_cli.run_dir.hydra_record import INVOCATION_KEYS
from ddpm_cli.system import tree

# What the weights and the meaning of a step depend on. A learning rate or a batch size may change; these may not.
FIXED = ("model", "adapter", "schedule", "prediction", "variance", "dataset", "representation", "condition")
# But of a data set and an autoencoder where they are, and of a network whether it keeps its activations, may.
_FREE = {
    "dataset": ("root", "cache", "download"),
    "condition": ("root", "cache", "path"),
    "model": ("checkpointing",),
    "representation": ("autoencoder",),
}
# What no two nodes are told apart by; `values` of a schedule and `width` of a vector are read from files when the run
# begins.
_PASSING = {"values", "width", *(key for group, keys in _FREE.items() if group != "condition" for key in keys)}
_NOTHING = object()  # where a configuration has no such key

Config = dict[str, Any]


def merge(stored: Config, composed: Config, typed: list[str]) -> Config:
    """The stored configuration with the settings typed for this invocation laid over it.

    composed is the whole configuration of this invocation, typed its overrides as written (`key=value`). UserError for
    a change of what the weights depend on; where to find the data may change.
    """
    merged = _completed(copy.deepcopy(stored), composed)
    for override in typed:
        key = key_of(override)
        group, *inner = key.split(".")
        if group == "experiment":  # it may have changed anything: what it must not is looked at, the rest is not taken
            for fixed in FIXED:
                new, old = (_lasting(config.get(fixed)) for config in (composed, stored))
                _refuse_change(fixed, new, old, key)
        elif group == "hydra" or key in INVOCATION_KEYS:
            continue
        elif key == "budget":
            if composed["budget"] != stored.get("budget"):
                raise UserError(
                    f"{override}: a budget is for the beginning of a run, and this one has its num_steps="
                    f"{stored['training']['num_steps']}; leave it out, or type training.num_steps or training.stop_at"
                )
            merged["budget"] = composed["budget"]
        elif group in FIXED and not (inner and inner[-1] in _FREE.get(group, ())):
            new, old = (_lasting(_get(config, key, override)) for config in (composed, stored))
            _refuse_change(key, new, old, key)
        else:
            tree.put(merged, key, copy.deepcopy(_get(composed, key, override)))
    old = tree.get(stored, "optimizer._target_")
    _refuse_change("optimizer._target_", merged["optimizer"]["_target_"], old, "optimizer")
    for key in INVOCATION_KEYS:  # never those of an invocation before
        if (value := tree.get(composed, key)) is not None or tree.get(merged, key) is not None:
            tree.put(merged, key, copy.deepcopy(value))
    return merged


def changes(stored: Config, merged: Config, typed: list[str]) -> list[str]:
    """`seed 0 -> 5` for each value that was typed and is another than the checkpoint's."""
    told = []
    for key in dict.fromkeys(map(key_of, typed)):
        if key in INVOCATION_KEYS or key.split(".")[0] in ("hydra", "experiment"):
            continue
        old, new = (dict(tree.leaves(tree.get(config, key), key, into=(dict,))) for config in (stored, merged))
        told += [
            f"{k} {shown(old.get(k))} -> {shown(value)}"
            for k, value in new.items()
            if k not in INVOCATION_KEYS and old.get(k) != value
        ]
    return list(dict.fromkeys(told))


def _completed(stored: Config, composed: Config) -> Config:
    """Keys that came into being after the checkpoint was written have the values of now; groups stay as they are."""
    for key, value in composed.items():
        if key not in stored:
            stored[key] = copy.deepcopy(value)
        elif isinstance(value, dict) and isinstance(stored[key], dict) and "_target_" not in value:
            _completed(stored[key], value)
    return stored


def _lasting(value: Any) -> Any:
    """A group's node without the keys that may change."""
    return {k: v for k, v in value.items() if k not in _PASSING} if isinstance(value, dict) else value


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


def _get(config: Config, key: str, override: str) -> Any:
    value = tree.get(config, key, _NOTHING)
    if value is _NOTHING:
        raise UserError(f"{override}: the stored run has no key {key}")
    return value
