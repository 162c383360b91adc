"""Checks a composed configuration against its reference, the same choices of groups with no value set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from ddpm_cli.config.compose import Composer, plain, refusal
from ddpm_cli.config.figures import FIGURES, V_ERRORS
from ddpm_cli.config.groups import primary_groups, primary_keys
from ddpm_cli.config.knobs import rule_for
from ddpm_cli.config.messages import MISSING, near_option, shown, unknown_key
from ddpm_cli.config.overrides import as_typed, key_of, typed_keys
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
                self.problems.append(f"{path} is required: {self.command} {path}={rule.example}")
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


# Relations between values of different groups, and those that are to be told without importing torch: each gives what
# is wrong, or None. A key that is absent, null or of another kind (`auto`) is no number, and then there is no relation.

Check = Callable[[Config], str | None]


def _of_kind(config: Config, key: str, kind: Any) -> Any:
    value = tree.get(config, key)
    return value if isinstance(value, kind) else None


def _at_most(small: str, large: str, remedy: str = "") -> Check:
    def check(config: Config) -> str | None:
        low, high = (_of_kind(config, key, (int, float)) for key in (small, large))
        if low is None or high is None or low <= high:
            return None
        return f"{small}={low} must not exceed {large}={high}{remedy}"

    return check


def _stop_at_is_in_the_run(config: Config) -> str | None:
    check = _at_most("training.stop_at", "training.num_steps")
    return None if config.get("budget") else check(config)  # num_steps is not known yet


def _nesterov_needs_momentum(config: Config) -> str | None:
    if not tree.get(config, "optimizer.nesterov") or tree.get(config, "optimizer.momentum") != 0:
        return None
    return "optimizer.nesterov=true needs optimizer.momentum above 0; or set optimizer.nesterov=false"


def _one_device_is_not_several(config: Config) -> str | None:
    device, devices = config.get("device"), _of_kind(config, "devices", int)
    if device is None or devices is None or devices == 1 or (device != "mps" and ":" not in device):
        return None
    return f"devices={devices}: device={device} is one device; use device=cuda, device=cpu or devices=1"


def _attention_is_in_a_level(config: Config) -> str | None:
    levels, mult = (_of_kind(config, f"model.{key}", list) for key in ("attention_levels", "channel_mult"))
    if not levels or not mult or max(levels) < len(mult):
        return None
    return f"model.attention_levels={levels} must lie in 0..{len(mult) - 1}, the levels of model.channel_mult={mult}"


def _best_is_measured(config: Config) -> str | None:
    best = tree.get(config, "training.keep_best")
    metric = next((name for name, figures in FIGURES.items() if best in figures), None)
    if best in V_ERRORS and tree.get(config, "training.heldout_every") == 0:
        return f"training.keep_best={best} needs training.heldout_every above 0"
    if metric is None:
        return None
    if config.get("eval_every") is None:
        return f"training.keep_best={best} is measured by evaluations: set eval_every=1000, or as often as suits"
    metrics = tree.get(config, "eval.metrics")
    return None if metric in metrics else f"training.keep_best={best} needs {metric} in eval.metrics={metrics}"


def _budget_counts_no_evaluations(config: Config) -> str | None:
    if config.get("budget") is None or config.get("eval_every") is None:
        return None
    return f"budget={config['budget']} does not count evaluations: type training.num_steps, or leave eval_every out"


def _noise_is_of_halves(config: Config) -> str | None:
    if not tree.get(config, "training.noise_scale") or tree.get(config, "training.batch_size") != 1:
        return None
    return "training.noise_scale=true compares a batch with half of it: set training.batch_size above 1"


def _one_source_of_images(config: Config) -> str | None:
    if "images" not in config:
        return None
    ckpt, images = config["ckpt"], config["images"]
    if ckpt is None and images is None:
        return "ckpt is required: ddpm-eval ckpt=PATH; or images=PATH, a folder of images"
    if ckpt is not None and images is not None:
        return f"images={images} is measured in place of what ckpt={ckpt} draws; leave one of the two out"
    return None


def _images_have_data_and_no_likelihood(config: Config) -> str | None:
    if config.get("images") is None:
        return None
    if config["data"] is None:
        return f"images={config['images']}: say what they are compared with: data=mnist, data=cifar10, data=FOLDER, ..."
    return "metrics: nll is of a model; name it by ckpt, or leave nll out" if "nll" in config["metrics"] else None


def _representations_are_of_their_medium(config: Config) -> str | None:
    if not isinstance(config.get("dataset"), dict) or "representation" not in config:
        return None
    sounds, node = "sample_rate" in config["dataset"], config["representation"] or {}
    of_sounds = bool(node) and "autoencoder" not in node
    if of_sounds and not sounds:
        return "representation is of sounds, and this dataset is of images: leave it out or choose dataset=audio_folder"
    if sounds and not of_sounds:
        return "representation: a model of sounds needs its own; choose representation=stft or representation=waveform"
    if sounds and config["dataset"]["channels"] != (made := node.get("channels")):
        return f"dataset.channels={config['dataset']['channels']}: the representation makes {made}; leave it out"
    return None


def _sides_are_of_sets_that_have_them(config: Config) -> str | None:
    size, target = _of_kind(config, "dataset.image_size", list), tree.get(config, "dataset._target_")
    squares = size is not None and "dtype" not in config["dataset"] and is_own("dataset", target)  # of a fixed kind too
    return f"dataset.image_size={size}: the images of this set are squares; give one number" if squares else None


def _edit_has_a_source(config: Config) -> str | None:
    edit = config.get("edit")
    if not isinstance(edit, dict) or not {"image", "sound"} <= set(edit):
        return None
    if edit["image"] is None and edit["sound"] is None:
        return "edit.image is required: ddpm-sample edit.image=PATH; of a model of sounds, edit.sound=PATH"
    both = edit["image"] is not None and edit["sound"] is not None
    return "edit.image and edit.sound are of different models: leave one of the two out" if both else None


CROSS_CHECKS: list[Check] = [
    _sides_are_of_sets_that_have_them,
    _representations_are_of_their_medium,
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
    _best_is_measured,
    _budget_counts_no_evaluations,
    _noise_is_of_halves,
]
# Of what a command cannot do without; `--cfg` shows a configuration that is not complete.
COMPLETE_CHECKS: list[Check] = [
    _one_source_of_images,
    _images_have_data_and_no_likelihood,
    _edit_has_a_source,
]
