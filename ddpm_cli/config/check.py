"""Checks a composed configuration against its reference, the same choices of groups with no value set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from ddpm_cli.config.compose import Composer, plain, refusal
from ddpm_cli.config.groups import primary_groups, primary_keys
from ddpm_cli.config.knobs import rule_for
from ddpm_cli.config.messages import MISSING, near_option, shown, unknown_key
from ddpm_cli.config.overrides import as_typed, key_of, typed_keys
from ddpm_cli.config.relations import COMPLETE_CHECKS, CROSS_CHECKS
from ddpm_cli.config.rules import Rule
from ddpm_cli.config.targets import GROUP_MODULES, check_target, is_own
from ddpm_cli.errors import UserError
from ddpm_cli.system import tree

Config = Mapping[str, Any]


def configuration(command: str, *overrides: str) -> dict[str, Any]:
    """What a command line amounts to, plain and checked: for scripts and notebooks, and for what another command than
    the one that runs would make of it."""
    if GlobalHydra.instance().is_initialized():
        composer = Composer(command)
        return checked(composer.compose(overrides), composer)
    with Composer.opened(command) as composer:
        return checked(composer.compose(overrides), composer)


def checked(
    cfg: DictConfig, composer: Composer, *, complete: bool = True, reference: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The composed configuration as a plain dict, every value checked; a group chosen as null is there as None.

    reference: where it is known already. With `complete` a required key without a value is an error too.
    """
    config, primary, groups = plain(cfg), primary_keys(composer.command), primary_groups(composer.command)
    check_hydras_keys(cfg)
    _check_keys_of_files(config, primary, {*groups, *composer.groups})
    reference = composer.reference(cfg.hydra.runtime.choices) if reference is None else reference
    accepted = validated(config, reference, f"ddpm-{composer.command}", complete=complete)
    return {**dict.fromkeys(group for group in groups if group != "experiment"), **accepted}


def check_hydras_keys(cfg: DictConfig) -> None:
    """Refuse an interpolation in Hydra's own settings that does not resolve: Hydra would tell with a traceback."""
    for text in as_typed(cfg.hydra.overrides.hydra):
        try:
            OmegaConf.select(cfg, key_of(text))
        except InterpolationToMissingValueError:
            continue  # the number of a job is known when it starts
        except OmegaConfBaseException as error:
            raise UserError(f"{key_of(text)}: {refusal(error)}") from error


def _check_keys_of_files(config: Config, primary: Config, groups: set[str]) -> None:
    """Refuse keys that a file of the user's brings in outside its own group: Hydra would carry them along unused."""
    known = [*tree.keys(primary), *groups]
    for key in tree.keys({key: value for key, value in config.items() if key in primary or key not in groups}):
        if key not in known:
            raise UserError(f"{unknown_key(key, known)} (it comes from a configuration file)")


def validated(config: Config, reference: Config, command: str, *, complete: bool = True) -> dict[str, Any]:
    """The configuration with every value accepted and in its type, or a UserError naming up to three wrong keys.

    What values must be to one another, and what code they may name, is looked at once each is right by itself.
    """
    values = _Values(command, _foreign_groups(config), complete)
    accepted = values.accepted(config, reference)
    problems = values.problems or _wrong_targets(config)
    checks = [*CROSS_CHECKS, *(COMPLETE_CHECKS if complete else [])]
    problems = problems or [problem for check in checks if (problem := check(accepted))]
    if problems:
        raise UserError("\n".join("\n".join(problems).splitlines()[:3]))
    return accepted


def _foreign_groups(config: Config) -> set[str]:
    """Groups whose code is the user's: our ranges do not apply to its arguments, whatever their names."""
    targets = {group: tree.get(config, f"{group}._target_") for group in GROUP_MODULES}
    return {group for group, target in targets.items() if target is not None and not is_own(group, target)}


def _wrong_targets(config: Config) -> list[str]:
    """What is wrong with the `_target_`s, at any depth."""
    problems = []
    for key, target in tree.leaves(dict(config)):
        group, *inner = key.split(".")
        if "_target_" in inner:
            try:
                check_target(group, target, config.get("trust") or [])
            except UserError as error:
                problems.append(str(error).replace(f"{group}._target_", key, 1))
    return problems


@dataclass
class _Values:
    """Accepts values one by one, and collects what is wrong with the others."""

    command: str
    foreign: set[str]
    complete: bool
    problems: list[str] = field(default_factory=list)

    def accepted(self, config: Config, reference: Config, prefix: str = "") -> dict[str, Any]:
        """A node of the configuration beside the reference's: the same keys, and values that their rules accept."""
        self.problems += [
            f"{prefix}{key} cannot be removed: every run needs it" for key in reference if key not in config
        ]
        found: dict[str, Any] = {}
        for key, value in config.items():
            path, known = f"{prefix}{key}", reference.get(key)
            if key not in reference:
                self.problems.append(unknown_key(path, tree.keys(reference, prefix)))
            elif isinstance(known, dict) and isinstance(value, dict):
                found[key] = self.accepted(value, known, f"{path}.")
            elif isinstance(known, dict):
                inner = ", ".join(f"{path}.{name}" for name in list(known)[:4])
                self.problems.append(f"{path} is a group of keys ({inner}), got {shown(value)}")
            else:
                found[key] = self._value(
                    path, value, rule_for(path, known, by_table=path.split(".")[0] not in self.foreign)
                )
        return found

    def _value(self, path: str, value: Any, rule: Rule) -> Any:
        if value == MISSING:
            if self.complete:
                how = f"add {path}" if "." in path else f"{self.command} {path}"  # alone it would be an unknown key
                self.problems.append(f"{path} is required: {how}={rule.example}")
            return value
        try:
            return rule(value)
        except (ValueError, TypeError, OverflowError):
            self.problems.append(f"{path} must be {rule.text}, got {shown(value)}{_hint(value, rule)}")
            return value


def _hint(value: Any, rule: Rule) -> str:
    if isinstance(value, str) and rule.nullable and value.lower() in ("none", "nil", "~"):
        return "; write null"
    enumerated = isinstance(value, str) and rule.text.startswith("one of ")
    return near_option(value, rule.text.removeprefix("one of ").split(", ")) if enumerated else ""


def check_budget(config: Config, typed: Sequence[str]) -> None:
    """Refuse a budget beside a typed number of steps; one out of a file gives way to it."""
    if config.get("budget") is not None and "training.num_steps" in typed_keys(typed):
        raise UserError(f"budget={config['budget']} sets training.num_steps: type one of the two, not both")
