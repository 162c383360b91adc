"""State dicts of the programs of Ho et al. (pytorch_diffusion) and of OpenAI (improved-diffusion, guided-diffusion).

Such a file holds weights alone; what they are of stood on the command line. Here it stands in a JSON file of the same
name beside the weights, with the flags by their own names: ema.pt and ema.json. No torch.
"""

from pathlib import Path
from typing import Any

from ddpm_cli.errors import UserError
from ddpm_cli.formats.settings import MOST_TIMESTEPS, Config, Settings, read_json, unknown_data

LAYOUT = "layout"  # of the names of the weights; in the model's node while it is read, and no setting of the network
OPENAI: Config = {  # guided-diffusion's defaults; improved-diffusion's are the same where it has the flag
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "class_cond": False,
    "num_classes": 1000,  # a constant there
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
    "sigma_small": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "rescale_timesteps": None,  # true in improved-diffusion, false in guided-diffusion
}
# Of how one trains or draws there.
_PASSED_OVER = {"use_checkpoint", "use_fp16", "timestep_respacing", "use_kl", "rescale_learned_sigmas"}
_MULT = {32: [1, 2, 2, 2], 64: [1, 2, 3, 4], 128: [1, 1, 2, 3, 4], 256: [1, 1, 2, 2, 4, 4]}  # by image_size
HO: Config = {  # the network of CIFAR-10
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 2, 2],
    "num_res_blocks": 2,
    "attn_resolutions": [16],
    "dropout": 0.1,
    "resamp_with_conv": True,
    "model_var_type": "fixedlarge",
}


def read_flags(weights: Path) -> Settings:
    """What the JSON file beside the weights tells of them; UserError for flags that no network here can follow."""
    file = flags_of(weights)
    given = read_json(file)
    layout, defaults = ("ho", HO) if "ch" in given else ("openai", OPENAI)
    strange = [name for name in given if name not in defaults and name not in _PASSED_OVER]
    if strange:
        known = ", ".join(defaults)
        raise UserError(f"{file}: {strange[0]} is no flag that is known here; leave it out\nknown are {known}")
    read = {"ho": _ho, "openai": _openai}[layout]
    try:
        config = read({**defaults, **given}, file)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{file}: its flags cannot be read ({type(error).__name__}: {error})") from error
    model = {"_target_": "ddpm_cli.models.unet.UNet", "patch_size": 1, "checkpointing": False, **config["model"]}
    return Settings(weights, {**config, "model": {**model, LAYOUT: layout}}, [], 0)


def flags_of(weights: Path) -> Path:
    return weights.with_suffix(".json")


def _openai(f: Config, file: Path) -> Config:
    size, total = f["image_size"], f["diffusion_steps"]
    mult = _numbers(f["channel_mult"]) if f["channel_mult"] else _MULT.get(size)
    if not mult or mult[0] != 1:
        raise UserError(f"{file}: channel_mult={f['channel_mult']} must begin with 1, and be given for {size} pixels")
    if f["num_heads_upsample"] not in (-1, f["num_heads"]):
        raise UserError(f"{file}: num_heads_upsample={f['num_heads_upsample']}: networks here have the same both ways")
    if total != 1000 and f["rescale_timesteps"] is None:
        told = "improved-diffusion's default is true, guided-diffusion's false"
        raise UserError(f"{file}: rescale_timesteps must be said with diffusion_steps={total}: {told}")
    if f["noise_schedule"] not in ("linear", "cosine"):
        raise UserError(f"{file}: noise_schedule={f['noise_schedule']} is not known here: linear, cosine")
    own = f["num_head_channels"] != -1
    classes = f["num_classes"] if f["class_cond"] else 0
    variance = "LearnedRange" if f["learn_sigma"] else "FixedSmall" if f["sigma_small"] else "FixedLarge"
    model = {
        "in_channels": 3,
        "num_classes": classes,
        "class_conditional": bool(f["class_cond"]),
        "learned_null": False,
        "channels": f["num_channels"],
        "channel_mult": mult,
        "blocks_per_level": f["num_res_blocks"],
        "attention_levels": _levels(_numbers(f["attention_resolutions"]), size, len(mult), file),
        "dropout": f["dropout"],
        "head_channels": f["num_head_channels"] if own else None,
        "num_heads": None if own else f["num_heads"],
        "scale_shift_norm": bool(f["use_scale_shift_norm"]),
        "resblock_updown": bool(f["resblock_updown"]),
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "new_attention_order": bool(f["use_new_attention_order"]),
    }
    schedule = _schedule(f["noise_schedule"], total, bool(f["rescale_timesteps"]), file)
    return _config(model, size, schedule, "X0" if f["predict_xstart"] else "Epsilon", variance)


def _ho(f: Config, file: Path) -> Config:
    if f["resamp_with_conv"] is not True or f["ch_mult"][0] != 1:
        raise UserError(f"{file}: resamp_with_conv must be true and ch_mult begin with 1 for a network here")
    if f["in_channels"] != f["out_ch"]:
        raise UserError(f"{file}: out_ch={f['out_ch']} must be in_channels={f['in_channels']}")
    variances = {"fixedlarge": "FixedLarge", "fixedsmall": "FixedSmall"}
    if f["model_var_type"] not in variances:
        raise UserError(f"{file}: model_var_type={f['model_var_type']} is not known here: {', '.join(variances)}")
    model = {
        "in_channels": f["in_channels"],
        "num_classes": 0,
        "class_conditional": False,
        "channels": f["ch"],
        "channel_mult": list(f["ch_mult"]),
        "blocks_per_level": f["num_res_blocks"],
        "attention_levels": _levels(f["attn_resolutions"], f["resolution"], len(f["ch_mult"]), file),
        "dropout": f["dropout"],
        "norm_num_groups": 32,
    }
    schedule = _schedule("linear", 1000, False, file)
    return _config(model, f["resolution"], schedule, "Epsilon", variances[f["model_var_type"]])


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _levels(resolutions: list[int], size: int, count: int, file: Path) -> list[int]:
    """The levels at which the image has these resolutions; those that it never has are passed over, as there."""
    if type(size) is not int or not 1 <= size <= 8192:
        raise UserError(f"{file}: images of {size} pixels; expected a whole number from 1 to 8192")
    return [level for level in range(min(count, 32)) if size // 2**level in resolutions]


def _schedule(name: str, total: Any, rescale: bool, file: Path) -> Config:
    if type(total) is not int or not 1 <= total <= MOST_TIMESTEPS:
        raise UserError(f"{file}: diffusion_steps must be a whole number from 1 to {MOST_TIMESTEPS}, got {total}")
    ends = {"beta_start": 1e-4, "beta_end": 0.02} if name == "linear" else {"s": 0.008, "max_beta": 0.999}
    target = f"ddpm_cli.diffusion.schedule.{name}"
    return {"_target_": target, "num_timesteps": total, **ends, "zero_terminal_snr": False, "rescale_time": rescale}


def _config(model: Config, size: int, schedule: Config, prediction: str, variance: str) -> Config:
    return {
        "dataset": unknown_data(model["in_channels"], size, model["num_classes"]),
        "model": model,
        "schedule": schedule,
        "prediction": {"_target_": f"ddpm_cli.diffusion.prediction.{prediction}"},
        "variance": {"_target_": f"ddpm_cli.diffusion.variance.{variance}"},
        "training": {"label_dropout": 0.0},
        "clip": True,
    }
