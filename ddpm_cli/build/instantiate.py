"""From one group of a configuration to the object it names.

A group's `_target_` is looked up by these few lines, never by hydra.utils.instantiate, and only inside the group's own
module (see targets.check_target).
"""

import inspect
from typing import Any

from ddpm_cli.config.targets import load_target
from ddpm_cli.data.conditions import Condition
from ddpm_cli.diffusion.editing import Edit
from ddpm_cli.diffusion.losses import Loss
from ddpm_cli.diffusion.prediction import Prediction
from ddpm_cli.diffusion.samplers import Sampler
from ddpm_cli.diffusion.timesteps import Timesteps
from ddpm_cli.diffusion.variance import Variance
from ddpm_cli.diffusion.weighting import Weighting
from ddpm_cli.errors import UserError
from ddpm_cli.media.representation import Representation
from ddpm_cli.models.conditioning import Network
from ddpm_cli.training.ema import Averaging

Config = dict[str, Any]
_JOINED = {  # keys of a group that are not arguments of its _target_
    "dataset": {"flip"},
    "representation": {"std", "autoencoder", "dtype"},
    "schedule": {"path", "zero_terminal_snr", "rescale_time"},
    "optimizer": {"warmup_steps", "decay", "reference_steps", "weight_decay_of"},
    "edit": {"image", "sound", "mask", "gap", "to"},
}
_PROTOCOLS: dict[str, Any] = {
    "representation": Representation,
    "condition": Condition,
    "model": Network,
    "prediction": Prediction,
    "variance": Variance,
    "weighting": Weighting,
    "timesteps": Timesteps,
    "loss": Loss,
    "sampler": Sampler,
    "edit": Edit,
    "ema": Averaging,
}


def make(group: str, node: Config, trust: list[str], **joined: Any) -> Any:
    """The object a group's node names, made with the node's other keys and `joined`; UserError says which key is
    wrong."""
    target = node.get("_target_")
    if not isinstance(target, str):
        raise UserError(f"{group}._target_ is missing: name the class or function that {group} is made of")
    factory = load_target(group, target, trust)
    if factory in _PROTOCOLS.values():
        raise UserError(f"{group}._target_={target} is what every {group} offers, and none itself")
    knobs = {k: v for k, v in node.items() if k != "_target_" and k not in _JOINED.get(group, ())}
    try:
        inspect.signature(factory).bind(**knobs, **joined)
    except TypeError as error:
        raise UserError(f"{group}: {target} does not take these keys: {error}") from error
    try:
        made = factory(**knobs, **joined)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error) if str(error).startswith(group) else f"{group}: {error}") from error
    if group in _PROTOCOLS:
        _complete(made, _PROTOCOLS[group], group, joined)
    return made


def _complete(made: Any, protocol: type, group: str, joined: Config) -> None:
    """Gives an option what its axis' Protocol names and it does not state: the default there, or what it was made with.

    Options in this package derive from the Protocol; code from elsewhere need not, and may be a function's closure.
    """
    for name in {**inspect.get_annotations(protocol), **vars(protocol)}:
        if name.startswith("_") or hasattr(made, name):
            continue
        default = joined[name] if name in joined else vars(protocol)[name]
        if isinstance(default, property) or (name not in joined and callable(default)):
            default = default.__get__(made)
        try:
            object.__setattr__(made, name, default)  # also where the option is frozen
        except (AttributeError, TypeError) as error:  # it has slots
            home = f"{protocol.__module__}.{protocol.__name__}"
            raise UserError(f"{group}: {type(made).__name__} states no {name}; derive it from {home}") from error


def make_asking(group: str, node: Config, trust: list[str], joined: Config | None = None, **offered: Any) -> Any:
    """As make, with those of `offered` that the target takes."""
    taken = inspect.signature(load_target(group, node["_target_"], trust)).parameters
    return make(group, node, trust, **(joined or {}), **{key: offered[key] for key in offered if key in taken})


def name_of(node: Config) -> str:
    """The class or function a group's node names, without its module."""
    return str(node["_target_"]).rpartition(".")[2]
