"""Which classes and functions a configuration may name as `_target_` (a configuration may come from a stranger)."""

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from ddpm_cli.errors import UserError

# Each group's own modules; a `*` stands for the modules of a package.
GROUP_MODULES: dict[str, tuple[str, ...]] = {
    "dataset": ("ddpm_cli.data.*",),
    "representation": ("ddpm_cli.media.representation", "ddpm_cli.media.latents"),
    "condition": ("ddpm_cli.data.conditions",),
    "model": ("ddpm_cli.models.*",),
    "adapter": ("ddpm_cli.models.lora",),
    "optimizer": ("torch.optim", "ddpm_cli.training.muon"),
    "ema": ("ddpm_cli.training.ema",),
    "schedule": ("ddpm_cli.diffusion.schedule",),
    "prediction": ("ddpm_cli.diffusion.prediction",),
    "variance": ("ddpm_cli.diffusion.variance",),
    "weighting": ("ddpm_cli.diffusion.weighting",),
    "timesteps": ("ddpm_cli.diffusion.timesteps",),
    "loss": ("ddpm_cli.diffusion.losses", "ddpm_cli.diffusion.consistency"),
    "sampler": ("ddpm_cli.diffusion.samplers",),
    "edit": ("ddpm_cli.diffusion.editing",),
    "features": ("ddpm_cli.evaluation.features.*",),
}
_NAME = re.compile(r"[A-Za-z]\w*")  # no leading underscore: nothing private, nothing magic


def is_own(group: str, target: object) -> bool:
    """Whether `target` names something in one of the group's own modules."""
    return any(_is_in(module.split("."), str(target).split(".")) for module in GROUP_MODULES.get(group, ()))


def _is_in(module: list[str], target: list[str]) -> bool:
    return len(target) == len(module) + 1 and all(
        _NAME.fullmatch(part) and want in (part, "*") for part, want in zip(target, [*module, "*"], strict=True)
    )


def check_target(group: str, target: object, trust: Sequence[str] = ()) -> None:
    """Refuse a `_target_` outside the group's module, unless a package in `trust` holds it."""
    if is_own(group, target):
        return
    if isinstance(target, str) and any(target.startswith(f"{package}.") for package in trust):
        return
    package = str(target).split(".")[0]
    home = " or ".join(GROUP_MODULES.get(group, ("this program",))).replace(".*", "")
    raise UserError(
        f"{group}._target_={target} lies outside {home}, so it is not run\nif the code is yours: trust=[{package}]"
    )


def load_target(group: str, target: str, trust: Sequence[str] = ()) -> Callable[..., Any]:
    """The class or function that `target` names, imported and checked to be at home in the module that names it."""
    check_target(group, target, trust)
    module_name, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{group}._target_={target} cannot be imported: {error}") from error
    # A module also holds what it imports: `ddpm_cli.data.digits.Path` must not pass for the group's own.
    home = getattr(found, "__module__", None) or ""
    package = module_name if group in GROUP_MODULES and is_own(group, target) else module_name.split(".")[0]
    if not (inspect.isclass(found) or inspect.isfunction(found)) or f"{home}.".find(f"{package}.") != 0:
        raise UserError(f"{group}._target_={target} is not a class or function defined in {package}")
    if group in ("dataset", "features") and is_own(group, target) and not _takes_keywords_alone(found):
        raise UserError(f"{group}._target_={target} is a part of the machinery behind {group}, and no option of it")
    return found


def _takes_keywords_alone(factory: Callable[..., Any]) -> bool:
    """What tells an option, whose arguments are its knobs, from the functions beside it that write files."""
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    return all(parameter.kind in kinds for parameter in inspect.signature(factory).parameters.values())
