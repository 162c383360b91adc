"""From one group of a configuration to the object it names.

A group's `_target_` is looked up by these few lines, never by hydra.utils.instantiate, and only inside the group's own
module (see targets.check_target).
"""

import inspect
from typing import Any

from ddpm_cli.errors import UserError
from ddpm_cli.targets import load_target

Config = dict[str, Any]
_JOINED = {  # keys of a group that are not arguments of its _target_
    "dataset": {"flip"},
    "schedule": {"path", "zero_terminal_snr", "rescale_time"},
    "optimizer": {"warmup_steps", "decay"},
    "edit": {"image", "mask", "to"},
}


def make(group: str, node: Config, trust: list[str], **joined: Any) -> Any:
    """The object a group's node names, made with the node's other keys and `joined`; UserError says which key is
    wrong."""
    target = node.get("_target_")
    if not isinstance(target, str):
        raise UserError(f"{group}._target_ is missing: name the class or function that {group} is made of")
    factory = load_target(group, target, trust)
    knobs = {k: v for k, v in node.items() if k != "_target_" and k not in _JOINED.get(group, ())}
    try:
        inspect.signature(factory).bind(**knobs, **joined)
    except TypeError as error:
        raise UserError(f"{group}: {target} does not take these keys: {error}") from error
    try:
        return factory(**knobs, **joined)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error) if str(error).startswith(group) else f"{group}: {error}") from error


def make_asking(group: str, node: Config, trust: list[str], **offered: Any) -> Any:
    """As make, with those of `offered` that the target takes."""
    taken = inspect.signature(load_target(group, node["_target_"], trust)).parameters
    return make(group, node, trust, **{key: value for key, value in offered.items() if key in taken})


def name_of(node: Config) -> str:
    """The class or function a group's node names, without its module."""
    return str(node["_target_"]).rpartition(".")[2]
