"""The command line read: Hydra's flags and the overrides, paths and texts with the quotes that its grammar wants."""

import os
import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser  # Hydra has no public list of its flags

from ddpm_cli.config.knobs import is_free_text
from ddpm_cli.config.messages import near_option
from ddpm_cli.config.overrides import parse_override, quoted
from ddpm_cli.errors import UserError


@dataclass(frozen=True)
class Line:
    """A command line, read."""

    command: str  # train, sample
    flags: Namespace
    overrides: list[str]
    others: tuple[str, ...] = ()  # the arguments that are no overrides, as they were typed

    @property
    def shows_only(self) -> bool:
        """Whether Hydra answers by itself (help, completion, facts about files), and nothing need be right."""
        flags = self.flags
        return bool(flags.help or flags.hydra_help or flags.shell_completion or flags.info)

    def value(self, key: str) -> Any:
        """The last value typed for a key; None if there is none or several."""
        typed = [parse_override(text) for text in self.overrides]
        values = [None if o.is_sweep_override() else o.value() for o in typed if o.key_or_group == key]
        return values[-1] if values else None


def read(command: str, argv: Sequence[str], collects: str | None = None) -> Line:
    """The command line; UserError for a flag that does not exist, with the setting it may have been meant to be.

    collects: the key of a list, which gets the words that are no settings: `ddpm-report a b` is paths=['a','b'].
    """
    line = _read(command, with_quotes(argv))
    if line.flags.multirun:  # only the flags tell that this is a sweep, where commas may separate several paths
        line = _read(command, with_quotes(argv, sweep=True))
    return replace(line, overrides=_collected(line.overrides, collects)) if collects else line


def _collected(words: Sequence[str], key: str) -> list[str]:
    """The names of files may look like settings (a sweep's folder `seed=1`): what is there is taken for a path."""
    paths = [word for word in words if "=" not in word or os.path.exists(word)]
    settings = [word for word in words if word not in paths]
    return [*settings, f"{key}=[{','.join(map(quoted, paths))}]"] if paths else settings


def _read(command: str, argv: list[str]) -> Line:
    parser = get_args_parser()
    known = [option for action in parser._actions for option in action.option_strings]

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}{_meant(argv, known)}")

    parser.error = refuse  # type: ignore[method-assign]  # argparse's own prints the usage and ends in exit code 2
    flags = parser.parse_intermixed_args(argv)
    if flags.experimental_rerun is not None:
        raise UserError("--experimental-rerun runs code out of a pickle file, so it is off; use resume=RUN_DIR")
    overrides = list(flags.overrides)
    others = tuple(argument for argument in argv if argument not in overrides)
    return Line(command, flags, overrides, others)


def _meant(argv: Sequence[str], known: Sequence[str]) -> str:
    for argument in argv:
        name = argument.split("=")[0]
        if argument.startswith("--") and name not in known:
            setting = name.lstrip("-").replace("-", "_")
            return near_option(name, known) or f"; a setting is written without dashes: {setting}=VALUE"
    return ""


def with_quotes(argv: Sequence[str], *, sweep: bool = False) -> list[str]:
    """`ckpt=a=b.pt` as `ckpt='a=b.pt'`; null, quoted values and interpolations as they are, lists of a sweep too."""
    return [_quoted(argument, sweep) for argument in argv]


def _quoted(argument: str, sweep: bool) -> str:
    key, _, value = argument.partition("=")
    if not value or not is_free_text(key.lstrip("+")):
        return argument
    several = sweep and ("," in value or re.match(r"(choice|sort|shuffle|glob)\(", value))
    as_it_is = value == "null" or value[0] in "'\"" or "${" in value or several
    return argument if as_it_is else f"{key}={quoted(value)}"
