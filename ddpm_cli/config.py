"""The configuration as this program uses it: where its files are, how they are composed, plain values out of them."""

import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl  # no public way to compose with --config-dir in 1.3
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm_cli.errors import UserError
from ddpm_cli.primary import config_dir, knobs_text, options_text, primary_groups
from ddpm_cli.run_dir import OUTPUTS, run_folder
from ddpm_cli.validation import MISSING, dotted_keys, shown


@dataclass(frozen=True)
class Context:
    """What a job knows beside its configuration."""

    command: str  # ddpm-train, ddpm-sample
    run_dir: Path  # absolute; exists
    overrides: list[str] = field(default_factory=list)  # typed now, without those that a resumed run remembers
    multirun: bool = False
    job_num: int = 0
    choices: dict[str, str | None] = field(default_factory=dict)  # group -> option
    began: float = field(default_factory=time.monotonic)  # when what a budget counts began: the process, or the job

    @property
    def typed_keys(self) -> list[str]:
        """The keys that were typed; a group's name for a choice."""
        return typed_keys(self.overrides)


def key_of(override: str) -> str:
    """The key of an override such as `seed=1`, `+seed=1` or `~seed`."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def typed_keys(overrides: Sequence[str]) -> list[str]:
    """The keys of overrides, those inside a typed dictionary (`training={num_steps: 9}`) included."""
    keys = []
    for text in overrides:
        keys.append(key_of(text))
        if "={" in text:
            value = parse_override(text).value()
            keys += [f"{key_of(text)}.{key}" for key in dotted_keys(value)] if isinstance(value, dict) else []
    return keys


def check_budget(config: Mapping[str, Any], typed: Sequence[str]) -> None:
    """Refuse a budget beside a typed number of steps; one out of a file gives way to it."""
    if config.get("budget") is not None and "training.num_steps" in typed_keys(typed):
        raise UserError(f"budget={config['budget']} sets training.num_steps: type one of the two, not both")


def as_typed(overrides: Any) -> list[str]:
    """Hydra's record of overrides as text; iterating over it would resolve the interpolations in it."""
    texts = OmegaConf.to_container(overrides, resolve=False)
    return [str(text) for text in texts] if isinstance(texts, list) else []


def register_resolvers() -> None:
    """The resolvers of hydra.run.dir and the help; pure, and never raising (Hydra prints 90 lines if they do)."""
    OmegaConf.register_new_resolver("ddpm_run_dir", run_folder, replace=True)
    OmegaConf.register_new_resolver("ddpm_out_dir", out_folder, replace=True)
    OmegaConf.register_new_resolver("ddpm_sweep_dir", _folder, replace=True)
    OmegaConf.register_new_resolver("ddpm_knobs", knobs_text, replace=True)
    OmegaConf.register_new_resolver("ddpm_options", options_text, replace=True)


def out_folder(out_dir: str | None, stamp: str) -> str:
    """The folder of the samples."""
    return _folder(out_dir, f"{OUTPUTS}/samples/{stamp}")


def _folder(typed: str | None, default: str) -> str:
    return os.path.expanduser(str(typed)) if typed else default


def parse_override(text: str) -> Override:
    """One override, read by Hydra's grammar."""
    if not key_of(text):
        raise UserError(f"cannot read {shown(text)}: expected KEY=VALUE")
    try:
        parsed = OverridesParser.create().parse_override(text)
        parsed.input_line = text
        return parsed
    except HydraException as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"cannot read {shown(text)}: expected KEY=VALUE ({reason[:120]})\n"
            f"a value with special characters needs quotes of its own: {key_of(text) or 'KEY'}=\"'VALUE'\""
        ) from error


class Composer:
    """Composes a command's configuration as Hydra will, without running or writing anything."""

    def __init__(self, command: str, loader: Any, config_name: str | None = None, fixed: Sequence[str] = ()):
        self.command = command  # train, sample: also the name of its primary configuration
        self.config_name = config_name or command  # --config-name
        self.loader = loader  # Hydra's ConfigLoaderImpl
        self.fixed = list(fixed)  # hydra.searchpath as typed

    @classmethod
    def for_command_line(
        cls,
        command: str,
        config_name: str | None = None,
        config_path: str | None = None,
        config_dirs: Sequence[str] = (),
        fixed: Sequence[str] = (),
    ) -> "Composer":
        setup_globals()
        search_path = create_config_search_path(os.path.abspath(config_path) if config_path else config_dir())
        for folder in config_dirs:
            anchor = SearchPathQuery(provider="schema", path=None)
            search_path.prepend("command-line", f"file://{os.path.abspath(folder)}", anchor)
        return cls(command, ConfigLoaderImpl(search_path), config_name, fixed)

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Every group with its options, Hydra's own left out."""
        listed = self.loader.repository.get_group_options  # the loader's own method copies all its sources each time
        found: dict[str, list[str]] = {}
        pending = [group for group in listed("", ObjectType.GROUP) if group != "hydra"]
        while pending:
            group = pending.pop()
            found[group] = listed(group, ObjectType.CONFIG)
            pending += [f"{group}/{inner}" for inner in listed(group, ObjectType.GROUP)]
        return {group: options for group, options in found.items() if options}

    def compose(self, overrides: Sequence[str], *, sweep: bool = False) -> DictConfig:
        """The whole configuration, `hydra` included; what Hydra refuses is a UserError."""
        mode = RunMode.MULTIRUN if sweep else RunMode.RUN
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Hydra warns again when it composes for the run
            try:
                return self.loader.load_configuration(self.config_name, list(overrides), mode, from_shell=False)
            except Exception as error:  # whatever goes wrong here is in the command line or in the files it names
                text = refusal(error)
                named = not overrides or any(key_of(override) in text for override in overrides)
                raise UserError(text if named else f"{text} ({shown(' '.join(overrides))})") from error

    def reference(self, choices: Mapping[str, str | None]) -> dict[str, Any]:
        """The plain configuration of these choices alone, without experiment and values: its keys and types."""
        known = primary_groups(self.command)
        overrides = [
            f"{'' if group in known else '+'}{group}={option}"
            for group, option in choices.items()
            if option is not None and group != "experiment" and not group.startswith("hydra/")
        ]
        return plain(self.compose([*self.fixed, *overrides]), lenient=True)


_RAISED = re.compile(r"^\w+ raised while resolving interpolation: ")


def refusal(error: BaseException) -> str:
    """What Hydra or OmegaConf has to say, in one line without its hints at things that do not apply here."""
    lines = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines()]
    noise = ("See https", "To append to your config", "Config search path", "provider=", "full_key:", "object_type=")
    told = [_RAISED.sub("", line).rstrip(".") for line in lines if line and not line.startswith(noise)]
    text = "; ".join(dict.fromkeys(told)) or type(error).__name__
    return text if len(text) <= 400 else text[:397] + "..."


def plain(config: DictConfig, *, lenient: bool = False) -> dict[str, Any]:
    """The configuration without `hydra` as plain dicts, lists and values, interpolations resolved.

    `lenient` gives None where one does not resolve; else that is a UserError naming the key. Missing stays `???`.
    """
    return {key: _plain(config, key, key, lenient) for key in map(str, config) if key != "hydra"}


def _plain(parent: DictConfig | ListConfig, key: Any, path: str, lenient: bool) -> Any:
    if OmegaConf.is_missing(parent, key):
        return MISSING
    try:
        node = parent[key]
    except OmegaConfBaseException as error:
        if lenient:
            return None
        raise UserError(f"{path}: {_RAISED.sub('', str(error).splitlines()[0])}") from error
    if isinstance(node, DictConfig):
        return {inner: _plain(node, inner, f"{path}.{inner}", lenient) for inner in map(str, node)}
    if isinstance(node, ListConfig):
        return [_plain(node, index, f"{path}[{index}]", lenient) for index in range(len(node))]
    return node


register_resolvers()
