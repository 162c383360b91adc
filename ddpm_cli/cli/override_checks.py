"""Checks of single overrides, before Hydra would refuse them in its own words, and the jobs of a sweep."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ddpm_cli.config.compose import Composer
from ddpm_cli.config.groups import options_of, primary_groups, primary_keys
from ddpm_cli.config.messages import near_option, shown, unknown_key
from ddpm_cli.errors import UserError
from ddpm_cli.system import tree

MOST_SWEPT_VALUES = 64  # values of a sweep that are checked before it starts; each job checks its own again


def is_choice(override: Any, composer: Composer) -> bool:
    """Whether an override chooses an option of a group, or is about Hydra itself, and so is no value of ours."""
    key = override.key_or_group
    return key in composer.groups or key.startswith(("hydra.", "hydra/")) or override.package is not None


def check_form(text: str, command: str) -> None:
    """Refuse a word that is no setting, with the setting or flag it may have been meant to be."""
    if "=" in text or text.startswith("~"):
        return
    options = {name: f"{group}={name}" for group in primary_groups(command) for name in options_of(group)}
    keys = [*tree.keys(primary_keys(command)), *primary_groups(command)]
    meant = {**options, "help": "--help", "version": "--version", **{key: f"{key}=VALUE" for key in keys}}
    near = difflib.get_close_matches(text, meant, n=1, cutoff=0.65)
    hint = f"did you mean {meant[near[0]]}?" if near else "see them all with --help"
    raise UserError(f"cannot read {shown(text)}: settings are written KEY=VALUE; {hint}")


def check_group(override: Any, composer: Composer) -> None:
    """Refuse a choice of a group that does not exist, or that this command does not have."""
    group, known = override.key_or_group, primary_groups(composer.command)
    if group.startswith("hydra") or (group not in composer.groups and group not in known):
        return
    if group not in composer.groups:
        raise UserError(f"{group}: there is none to choose; put yours into DIR/{group}/ and add --config-dir DIR")
    options = composer.groups[group]
    if override.is_delete():
        raise UserError(f"{group} cannot be removed; choose one of {group}={', '.join(options)}")
    if group not in known and group in primary_groups("train"):
        others = [f"ddpm-{command}" for command in ("sample", "eval") if group in primary_groups(command)]
        where = f"it is of {' and '.join(others)}" if others else "it comes from the checkpoint"
        raise UserError(f"{group} is not for ddpm-{composer.command}: {where}")
    if override.is_add() and group in known:
        raise UserError(f"{group} is a choice already; write {group}=... without the +")
    chosen = _options(override)
    if group in known and len(chosen) > 1 and not override.is_sweep_override():
        raise UserError(f"{group} takes one option, got {shown(chosen)}")
    for value in chosen:
        if value is None and known.get(group, "") is not None:
            raise UserError(f"{group}=null: a choice is needed: {', '.join(options)}")
        if value is not None and str(value) not in options:
            hint = near_option(str(value), options)
            raise UserError(f"{group}={value}: no such option{hint}\noptions: {', '.join(options)}")


def _options(override: Any) -> list[Any]:
    if override.is_sweep_override():
        return [text.strip("'\"") for text in override.sweep_string_iterator()] if override.is_discrete_sweep() else []
    value = override.value()
    return list(value) if isinstance(value, list) else [value]


def check_key(override: Any, known: list[str], choices: Mapping[str, Any]) -> None:
    """Refuse a key that does not exist, with what it may have been meant to be, and `+` and `~` on those that do."""
    key = override.key_or_group
    if key not in known:
        group = key.split(".")[0]
        inner = [name.removeprefix(f"{group}.") for name in known if name.startswith(f"{group}.")]
        inner = [name for name in inner if not name.startswith("_")]
        has = f"\n{group}={choices[group]} has {', '.join(inner[:12])}" if group in choices and inner else ""
        raise UserError(unknown_key(key, [*known, *map(str, choices)]) + has)
    if override.is_delete():
        raise UserError(f"{key} cannot be removed: every run needs it")
    if override.is_add():
        raise UserError(f"{key} exists already; write {override.input_line.lstrip('+')} without the +")


def jobs(parsed: Sequence[Any]) -> Iterator[list[str]]:
    """Jobs in which every swept value occurs at least once, each beside the first values of the other keys."""
    values = [_job_values(override) for override in parsed]
    first = [texts[0] for texts in values]
    yield first
    for index, texts in enumerate(values):
        for text in texts[1:]:
            yield [*first[:index], text, *first[index + 1 :]]


def _job_values(override: Any) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():  # interval(0, 1): its sweeper draws values, and each job checks its own
        return [f"{override.get_key_element()}={override.value().start}"]
    texts = [text for text, _ in zip(override.sweep_string_iterator(), range(MOST_SWEPT_VALUES), strict=False)]
    if not texts:
        raise UserError(f"{override.key_or_group}: the sweep {shown(override.input_line)} has no values")
    return [f"{override.get_key_element()}={text}" for text in texts]
