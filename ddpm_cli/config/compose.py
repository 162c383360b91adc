"""A command's configuration composed out of YAML files, as Hydra does, and plain values out of it."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from ddpm_cli.config.groups import config_dir, primary_groups
from ddpm_cli.config.messages import MISSING, shown
from ddpm_cli.config.overrides import key_of, quoted
from ddpm_cli.errors import UserError

_SEARCH_PATH = "hydra.searchpath"


class Composer:
    """Composes in the Hydra that is the process's own at the time, without running or writing anything."""

    def __init__(self, command: str, config_name: str | None = None, search_path: Sequence[str] = ()):
        """search_path: further places of groups, behind the program's own and those Hydra knows already."""
        self.command = command  # train, sample: also the name of its primary configuration
        self._config_name = config_name or command
        self._search_path = list(search_path)
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    @classmethod
    @contextmanager
    def opened(
        cls,
        command: str,
        config_name: str | None = None,
        config_path: str | None = None,
        search_path: Sequence[str] = (),
    ) -> Iterator["Composer"]:
        """A composer for a command line, in a Hydra that lasts as long as the context."""
        folder = os.path.abspath(config_path) if config_path else config_dir()
        another = GlobalHydra.instance().hydra  # of the program that calls us as a library
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(config_dir=folder, job_name=command, version_base="1.3"):
                yield cls(command, config_name, search_path)
        finally:
            GlobalHydra.instance().hydra = another

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Every group with its options, those of the user's folders too; neither Hydra's own nor what options share
        (`_base`)."""
        known = [element.path for element in GlobalHydra.instance().config_loader().get_search_path().get_path()]
        found: dict[str, set[str]] = {}
        for place in [*known, *self._search_path]:
            for group, option in _options_in(str(place or "pkg://").removeprefix("file://")):
                found.setdefault(group, set()).add(option)
        return {group: sorted(options) for group, options in sorted(found.items())}

    def get_group_options(self, group: str, results_filter: Any = None) -> list[str]:
        """The same of one group, under the name by which Hydra's `glob(*)` asks for it."""
        return self.groups.get(group, [])

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The whole configuration, `hydra` included; what Hydra refuses is a UserError.

        Composing takes a fifth of a second, so it is done once for the same overrides: leave the result as it is.
        """
        known = tuple(overrides)
        if known not in self._composed:
            self._composed[known] = self._compose(overrides)
        return self._composed[known]

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        given = [text for text in overrides if key_of(text) != _SEARCH_PATH]
        if self._search_path:
            given.append(f"{_SEARCH_PATH}=[{','.join(map(quoted, self._search_path))}]")
        try:
            return compose(self._config_name, given, return_hydra_config=True)
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
            if option is not None and group != "experiment" and not group.startswith(("hydra/", "_"))
        ]
        return plain(self.compose(overrides), lenient=True)


def _options_in(folder: str) -> Iterator[tuple[str, str]]:
    """(group, option) of each file below a folder; none for packages, which Hydra alone can look into."""
    for place, inner, files in os.walk(folder) if "://" not in folder else ():
        group = os.path.relpath(place, folder).replace(os.sep, "/")
        inner[:] = [name for name in inner if name[0] not in "._" and (group != "." or name != "hydra")]
        yield from ((group, name[:-5]) for name in files if name.endswith(".yaml") and group != ".")


_PLUGIN = re.compile(r"Could not find 'hydra/(launcher|sweeper)/(\w+)'")
_EXTRAS = {"joblib": "sweep", "submitit_local": "slurm", "submitit_slurm": "slurm", "optuna": "optuna"}
_NOT_FOUND = re.compile(r"Interpolation key '([\w.]+)' not found")
_RAISED = re.compile(r"^\w+ raised while resolving interpolation: ")


def refusal(error: BaseException) -> str:
    """What Hydra or OmegaConf has to say, in one line without its hints at things that do not apply here."""
    plugin = _PLUGIN.search(str(error))
    if plugin and plugin[2] in _EXTRAS:
        return f'hydra/{plugin[1]}={plugin[2]} is not installed: pip install "ddpm_cli[{_EXTRAS[plugin[2]]}]"'
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
        told = str(error).splitlines()[0]
        if isinstance(error, InterpolationKeyError) and (named := _NOT_FOUND.match(told)):
            group = named[1].split(".")[0]
            told = f"it is {named[1]}, which the {group} that was chosen does not have; choose another {group}"
        raise UserError(f"{path}: {_RAISED.sub('', told)}") from error
    if isinstance(node, DictConfig):
        return {inner: _plain(node, inner, f"{path}.{inner}", lenient) for inner in map(str, node)}
    if isinstance(node, ListConfig):
        return [_plain(node, index, f"{path}[{index}]", lenient) for index in range(len(node))]
    return node
