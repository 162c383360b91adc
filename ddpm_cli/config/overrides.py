"""One override of a command line, `key=value`, read by Hydra's grammar."""

import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from ddpm_cli.config.messages import shown
from ddpm_cli.errors import UserError
from ddpm_cli.system import tree


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
            keys += [f"{key_of(text)}.{key}" for key in tree.keys(value)] if isinstance(value, dict) else []
    return keys


def as_typed(overrides: Any) -> list[str]:
    """Hydra's record of overrides as text; iterating over it would resolve the interpolations in it."""
    texts = OmegaConf.to_container(overrides, resolve=False)
    return [str(text) for text in texts] if isinstance(texts, list) else []


def quoted(value: str) -> str:
    """Text in the quotes that Hydra's grammar wants around anything but a plain word.

    A backslash is itself there unless a quote follows, so those before a quote or the end are doubled.
    """
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value) + "'"


def as_command(words: Iterable[str]) -> str:
    """As it is typed in a shell, without Hydra's quotes around what needs none."""
    return shlex.join(re.sub(r"^([^=]+=)'([\w./-]+)'$", r"\1\2", word) for word in words)


def parse_override(text: str) -> Override:
    """One override, read; UserError with the quotes it may lack."""
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
