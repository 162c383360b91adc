"""What values must be to one another, and what is to be told of them without importing torch.

Each check gives what is wrong, or None. A key that is absent, null or of another kind (`auto`) is no number, and then
there is no relation.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ddpm_cli.config.figures import FIGURES, V_ERRORS
from ddpm_cli.config.targets import is_own
from ddpm_cli.system import tree

Config = Mapping[str, Any]
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


def _what_lies_beside_an_image_stays_with_it(config: Config) -> str | None:
    node = config.get("condition")
    beside = isinstance(node, dict) and ("root" in node or "path" in node)
    skipping = tree.get(config, "dataset.prepare") is False and tree.get(config, "dataset.on_error") == "skip"
    if not (beside and skipping):
        return None
    return "dataset.on_error=skip puts another image beside what a condition's files hold; set dataset.on_error=stop"


def _adapters_have_a_base(config: Config) -> str | None:
    known = config.get("adapter") is None or "init" not in config or config["init"] is not None
    if known or config.get("resume") is not None:  # whose stored configuration names it
        return None
    return "adapter: adapters are of a trained network; name it with init=RUN, or leave adapter out"


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
    _what_lies_beside_an_image_stays_with_it,
]
# Of what a command cannot do without; `--cfg` shows a configuration that is not complete.
COMPLETE_CHECKS: list[Check] = [
    _adapters_have_a_base,
    _one_source_of_images,
    _images_have_data_and_no_likelihood,
    _edit_has_a_source,
]
