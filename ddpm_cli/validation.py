"""Checks a composed configuration against its reference, the same choices of groups with no value set."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ddpm_cli.errors import UserError
from ddpm_cli.ranges import rule_for
from ddpm_cli.rules import Rule
from ddpm_cli.targets import GROUP_MODULES, check_target, is_own

MISSING = "???"
Config = Mapping[str, Any]


def validated(config: Config, reference: Config, command: str, *, complete: bool = True) -> dict[str, Any]:
    """The configuration with every value accepted and in its type, or a UserError naming up to three wrong keys.

    With `complete` a required key without a value is an error too.
    """
    trust = config.get("trust") or []
    problems: list[str] = []
    accepted = _checked(config, reference, "", command, _foreign_groups(config), problems, complete)
    if not problems:
        for group, key, target in _targets(config):
            try:
                check_target(group, target, trust)
            except UserError as error:
                problems.append(str(error).replace(f"{group}._target_", key, 1))
    if not problems:
        problems = [problem for check in CROSS_CHECKS if (problem := check(_Knobs(accepted)))]
    if problems:
        raise UserError("\n".join("\n".join(problems).splitlines()[:3]))
    return accepted


def _foreign_groups(config: Config) -> set[str]:
    """Groups whose code is the user's: our ranges do not apply to its arguments, whatever their names."""
    groups = {group: config[group].get("_target_") for group in GROUP_MODULES if isinstance(config.get(group), dict)}
    return {group for group, target in groups.items() if target is not None and not is_own(group, target)}


def _checked(
    config: Config, reference: Config, prefix: str, command: str, foreign: set[str], problems: list[str], complete: bool
) -> dict[str, Any]:
    accepted: dict[str, Any] = {}
    for key in reference:
        if key not in config:
            problems.append(f"{prefix}{key} cannot be removed: every run needs it")
    for key, value in config.items():
        path = f"{prefix}{key}"
        if key not in reference:
            problems.append(unknown_key(path, dotted_keys(reference, prefix)))
        elif isinstance(reference[key], dict) and isinstance(value, dict):
            accepted[key] = _checked(value, reference[key], f"{path}.", command, foreign, problems, complete)
        elif isinstance(reference[key], dict):
            inner = ", ".join(f"{path}.{name}" for name in list(reference[key])[:4])
            problems.append(f"{path} is a group of keys ({inner}), got {shown(value)}")
        else:
            rule = rule_for(path, reference[key], by_table=path.split(".")[0] not in foreign)
            accepted[key] = _accepted(path, value, rule, command, problems, complete)
    return accepted


def _accepted(path: str, value: Any, rule: Rule, command: str, problems: list[str], complete: bool) -> Any:
    if value == MISSING:
        if complete:
            problems.append(f"{path} is required: {command} {path}={rule.example}")
        return value
    try:
        return rule(value)
    except (ValueError, TypeError, OverflowError):
        problems.append(f"{path} must be {rule.text}, got {shown(value)}{_hint(value, rule)}")
        return value


def _hint(value: Any, rule: Rule) -> str:
    if isinstance(value, str) and rule.nullable and value.lower() in ("none", "nil", "~"):
        return "; write null"
    enumerated = isinstance(value, str) and rule.text.startswith("one of ")
    return near_option(value, rule.text.removeprefix("one of ").replace(",", "").split()) if enumerated else ""


def near_option(value: str, options: Iterable[str]) -> str:
    """`; did you mean adam?`, or nothing."""
    near = difflib.get_close_matches(value, list(options), n=1, cutoff=0.65)
    return f"; did you mean {near[0]}?" if near else ""


def shown(value: Any) -> str:
    """The value as the user would type it, shortened."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    text = repr(value) if isinstance(value, str) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."


def dotted_keys(config: Config, prefix: str = "") -> Iterator[str]:
    """Every key of the tree, dotted, inner nodes included."""
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from dotted_keys(value, f"{prefix}{key}.")


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What to tell about a key that does not exist: the keys it may have been meant to be."""
    known = [name for name in dict.fromkeys(known) if not _last(name).startswith("_")]
    siblings = {_last(name): name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]}
    near = [name for name in known if _last(name) == _last(key)][:3]
    near = near or [siblings[name] for name in difflib.get_close_matches(_last(key), siblings, n=2, cutoff=0.7)]
    near = near or [name for name in known if difflib.get_close_matches(_last(key), [_last(name)], cutoff=0.8)][:3]
    near = near or difflib.get_close_matches(key, known, n=2, cutoff=0.8)
    return f"unknown key {key}" + (f"; did you mean {' or '.join(near)}?" if near else "; see all with --cfg job")


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _targets(config: Any, group: str = "", path: str = "") -> Iterator[tuple[str, str, Any]]:
    """(group, key, value) of each `_target_`, at any depth."""
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in items:
        if key == "_target_":
            yield group, f"{path}{key}", value
        else:
            yield from _targets(value, group or str(key), f"{path}{key}.")


class _Knobs:
    """Numbers and lists by dotted key; None where the key is absent, null or of another kind."""

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, key: str, kind: Any = (int, float)) -> Any:
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node if isinstance(node, kind) else None


def _at_most(small: str, large: str, remedy: str = "") -> Any:
    def check(knob: _Knobs) -> str | None:
        low, high = knob(small), knob(large)
        if low is None or high is None or low <= high:
            return None
        return f"{small}={low} must not exceed {large}={high}{remedy}"

    return check


def _stop_at_is_in_the_run(knob: _Knobs) -> str | None:
    check = _at_most("training.stop_at", "training.num_steps")
    return None if knob("budget", str) else check(knob)  # num_steps is not known yet


def _nesterov_needs_momentum(knob: _Knobs) -> str | None:
    if not knob("optimizer.nesterov", bool) or knob("optimizer.momentum") != 0:
        return None
    return "optimizer.nesterov=true needs optimizer.momentum above 0; or set optimizer.nesterov=false"


def _one_device_is_not_several(knob: _Knobs) -> str | None:
    device, devices = knob("device", str), knob("devices")
    if device is None or devices is None or devices == 1 or (device != "mps" and ":" not in device):
        return None
    return f"devices={devices}: device={device} is one device; use device=cuda, device=cpu or devices=1"


def _attention_is_in_a_level(knob: _Knobs) -> str | None:
    levels, mult = knob("model.attention_levels", list), knob("model.channel_mult", list)
    if not levels or not mult or max(levels) < len(mult):
        return None
    return f"model.attention_levels={levels} must lie in 0..{len(mult) - 1}, the levels of model.channel_mult={mult}"


CROSS_CHECKS = [
    _at_most("training.micro_batch_size", "training.batch_size"),
    _stop_at_is_in_the_run,
    _at_most("devices", "training.batch_size", ": each device needs an image"),
    _at_most("schedule.beta_start", "schedule.beta_end"),
    _at_most("schedule.sigma_min", "schedule.sigma_max"),
    _at_most("schedule.log_snr_min", "schedule.log_snr_max"),
    _at_most("sampler.num_steps", "schedule.num_timesteps", ": set sampler.num_steps too"),
    _one_device_is_not_several,
    _nesterov_needs_momentum,
    _attention_is_in_a_level,
]
