"""What the JSON files of a folder of diffusers say, as a configuration of ours: a UNet2DModel and its scheduler.

A setting that would make another network than ours can be is refused by its name: most of them fit the weights all the
same, and would draw something else. What a file leaves out has diffusers' own default. No torch.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_cli.errors import UserError
from ddpm_cli.formats.settings import MOST_TIMESTEPS, Config, Settings, read_json, unknown_data

EXTRA = "_ddpm_cli"  # in unet/config.json: what diffusers has no name for, and passes over
WEIGHTS = "diffusion_pytorch_model.safetensors"
_PICKLED = "diffusion_pytorch_model.bin"  # as older folders have them

UNET: Config = {  # diffusers' defaults
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
FIXED: dict[str, list[Any]] = {  # the only values that our U-Net can have, the default first
    "act_fn": ["silu", "swish"],
    "add_attention": [True],
    "center_input_sample": [False],
    "class_embed_type": [None],
    "mid_block_scale_factor": [1],
    "mid_block_type": ["UNetMidBlock2D"],
    "time_embedding_dim": [None],
    "time_embedding_type": ["positional"],
}
SCHEDULER: Config = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "variance_type": "fixed_small",
    "rescale_betas_zero_snr": False,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "sample_max_value": 1.0,
}
PREDICTIONS = {"epsilon": "Epsilon", "sample": "X0", "v_prediction": "V"}
VARIANCES = {"fixed_small": "FixedSmall", "fixed_large": "FixedLarge", "learned_range": "LearnedRange"}


def read_settings(folder: Path, weights: Path | None = None) -> Settings:
    """The settings of the model in a folder; UserError for what our networks cannot be. weights: the file, if named."""
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    others = [name for name, part in index.items() if isinstance(part, list) and name not in ("unet", "scheduler")]
    if any(index[name] != [None, None] for name in others):
        raise UserError(f"{folder} has {', '.join(others)} beside unet and scheduler: only models of pixels are opened")
    unet = folder / "unet" if (folder / "unet").is_dir() else folder  # the first folders had all files in one
    scheduler = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    network, noise = unet / "config.json", scheduler / "scheduler_config.json"
    if not noise.is_file():
        raise UserError(f"{folder}: no scheduler_config.json, which says what noise the network was trained with")
    file = weights or next((unet / name for name in (WEIGHTS, _PICKLED) if (unet / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder}: no {WEIGHTS} in {unet}")
    try:
        return _settings(read_json(network), network, read_json(noise), noise, file)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{folder}: its settings cannot be read ({type(error).__name__}: {error})") from error


def _settings(unet: Config, network: Path, scheduler: Config, noise: Path, weights: Path) -> Settings:
    extra = unet.get(EXTRA, {})
    u, s = _unet(unet, network), _scheduler(scheduler, noise)
    learned = s["variance_type"] == "learned_range"
    wanted = u["in_channels"] * (2 if learned else 1)
    if u["out_channels"] != wanted:
        told = f"in_channels={u['in_channels']} and variance_type={s['variance_type']} make {wanted}"
        raise UserError(f"{network}: out_channels={u['out_channels']}, where {told}")
    rows = u["num_class_embeds"] or 0
    classes = extra.get("num_classes", rows)
    if classes not in (rows, rows - 1):  # the null label may have a row
        raise UserError(f"{network}: num_class_embeds={rows} does not go with the {classes} classes that it tells of")
    config = {
        "dataset": unknown_data(u["in_channels"], _square(u["sample_size"], network), classes),
        "model": {**_model(u, network), "num_classes": classes, "learned_null": bool(rows) and rows == classes + 1},
        "schedule": _schedule(s, noise),
        "prediction": {"_target_": f"ddpm_cli.diffusion.prediction.{PREDICTIONS[s['prediction_type']]}"},
        "variance": {"_target_": f"ddpm_cli.diffusion.variance.{VARIANCES[s['variance_type']]}"},
        "training": {"label_dropout": extra.get("label_dropout", 0.0)},
        "clip": bool(s["clip_sample"] or s["thresholding"]),
    }
    return Settings(weights, config, [*extra.get("class_names", [])], int(extra.get("step", 0)))


def _unet(given: Config, file: Path) -> Config:
    """The settings of a UNet2DModel, complete, once those that must have one value have it."""
    if given.get("_class_name") != "UNet2DModel":
        raise UserError(f"{file} is of a {given.get('_class_name')}; of diffusers' networks UNet2DModel is opened")
    for name, values in FIXED.items():
        if given.get(name, values[0]) not in values:
            raise _unlike(file, name, given[name], values[0])
    known = {**UNET, **FIXED}
    strange = [name for name, value in given.items() if name not in known and name[0] != "_" and value is not None]
    if strange:
        raise UserError(f"{file}: {strange[0]}={given[strange[0]]} is a setting that is not known here; leave it out")
    return {name: given.get(name, default) for name, default in UNET.items()}


def _unlike(file: Path, name: str, value: Any, only: Any) -> UserError:
    return UserError(f"{file}: {name}={value} is another network than any here, which have {name}={only}")


def _model(u: Config, file: Path) -> Config:
    """The node of our U-Net that is this UNet2DModel."""
    widths, last = u["block_out_channels"], len(u["block_out_channels"]) - 1
    channels = widths[0] if all(width % widths[0] == 0 for width in widths) else math.gcd(*widths)
    down, up = u["down_block_types"], u["up_block_types"][::-1]
    if len(down) != len(widths) or len(up) != len(widths):
        raise UserError(f"{file}: block_out_channels, down_block_types and up_block_types must be of one length")
    resampled = set()
    for level, (one, other) in enumerate(zip(down, up, strict=True)):
        for name, direction, key in ((one, "Down", "downsample_type"), (other, "Up", "upsample_type")):
            kinds = {f"{direction}Block2D": "conv", f"Resnet{direction}sampleBlock2D": "resnet"}
            kinds[f"Attn{direction}Block2D"] = u[key]
            if name not in kinds:
                raise _unlike(file, f"{direction.lower()}_block_types", name, " or ".join(kinds))
            if level < last if direction == "Down" else level > 0:
                resampled.add(kinds[name])
        if one.startswith("Attn") != other.startswith("Attn"):
            raise UserError(f"{file}: level {level} has attention on one way alone; networks here have it on both")
    if not resampled <= {"conv"} and resampled != {"resnet"}:
        raise UserError(f"{file}: downsample_type and upsample_type must be alike at every level, conv or resnet")
    if u["resnet_time_scale_shift"] not in ("default", "scale_shift"):
        raise _unlike(file, "resnet_time_scale_shift", u["resnet_time_scale_shift"], "default or scale_shift")
    normed, shifts = u["attn_norm_num_groups"], u["resnet_time_scale_shift"] == "scale_shift"
    if normed != u["norm_num_groups"] and (shifts or normed is not None):
        raise _unlike(file, "attn_norm_num_groups", normed, u["norm_num_groups"])
    return {
        "_target_": "ddpm_cli.models.unet.UNet",
        "in_channels": u["in_channels"],
        "class_conditional": u["num_class_embeds"] is not None,
        "channels": channels,
        "channel_mult": [width // channels for width in widths],
        "blocks_per_level": u["layers_per_block"],
        "attention_levels": [level for level, name in enumerate(down) if name.startswith("Attn")],
        "dropout": u["dropout"],
        "patch_size": 1,
        "head_channels": u["attention_head_dim"],
        "scale_shift_norm": shifts,
        "resblock_updown": resampled == {"resnet"},
        "checkpointing": False,
        **{name: u[name] for name in ("norm_num_groups", "norm_eps", "downsample_padding")},
        **{name: u[name] for name in ("flip_sin_to_cos", "freq_shift")},
    }


def _square(size: Any, file: Path) -> int:
    sides = size if isinstance(size, list) else [size]
    if size is None or len(set(sides)) != 1:
        raise UserError(f"{file}: sample_size={size} does not say the side of square images; write it there")
    return int(sides[0])


def _scheduler(given: Config, file: Path) -> Config:
    """The settings of a scheduler that the network was trained with, complete; how to draw is for ddpm-sample to say,
    but for whether estimates are clipped."""
    name = given.get("_class_name")
    if name not in ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler"):
        raise UserError(f"{file} is of a {name}; save the model with its DDPMScheduler, DDIMScheduler or PNDMScheduler")
    found = {key: given.get(key, default) for key, default in SCHEDULER.items()}
    if name == "PNDMScheduler":
        found["clip_sample"] = False
    found["variance_type"] = str(found["variance_type"]).removesuffix("_log")
    for key, values in (("prediction_type", PREDICTIONS), ("variance_type", VARIANCES)):
        if found[key] not in values:
            raise UserError(f"{file}: {key}={found[key]} has no counterpart here; known are {', '.join(values)}")
    total = found["num_train_timesteps"]
    if type(total) is not int or not 1 <= total <= MOST_TIMESTEPS:
        raise UserError(f"{file}: num_train_timesteps must be a whole number from 1 to {MOST_TIMESTEPS}, got {total}")
    if found["clip_sample"] and found["clip_sample_range"] != 1:
        raise UserError(f"{file}: clip_sample_range={found['clip_sample_range']}: estimates are clipped to 1 here")
    if found["thresholding"] and found["sample_max_value"] != 1:  # with 1 it is clipping
        raise UserError(f"{file}: thresholding=true; set it to false, and draw with clip=dynamic")
    return found


def _schedule(s: Config, file: Path) -> Config:
    """The node of a schedule of ours that has the same levels."""
    total, first, last = s["num_train_timesteps"], s["beta_start"], s["beta_end"]
    shared = {"zero_terminal_snr": bool(s["rescale_betas_zero_snr"]), "rescale_time": False}
    if s["trained_betas"] is None and s["beta_schedule"] in ("linear", "scaled_linear"):
        scale = total / 1000  # ours are stated for 1000 steps
        ends = {"beta_start": first * scale, "beta_end": last * scale}
        return {"_target_": _named(s["beta_schedule"]), "num_timesteps": total, **ends, **shared}
    if s["trained_betas"] is None and s["beta_schedule"] == "squaredcos_cap_v2":
        return {"_target_": _named("cosine"), "num_timesteps": total, "s": 0.008, "max_beta": 0.999, **shared}
    if s["trained_betas"] is None and s["beta_schedule"] != "sigmoid":
        raise UserError(f"{file}: beta_schedule={s['beta_schedule']} is not known here; write its trained_betas there")
    betas = s["trained_betas"] or [
        first + (last - first) / (1 + math.exp(6 - 12 * i / max(total - 1, 1))) for i in range(total)
    ]
    alpha_bar, product = [], 1.0
    for beta in betas:
        product *= 1 - float(beta)
        alpha_bar.append(product)
    return {"_target_": _named("table"), "path": None, "holds": "alpha_bar", "values": alpha_bar, **shared}


def _named(schedule: str) -> str:
    return f"ddpm_cli.diffusion.schedule.{schedule}"


def diffusers_names(config: Mapping[str, Any]) -> Config:
    """prediction_type and variance_type of a configuration of ours; UserError for what diffusers cannot be told."""
    found = {}
    for key, group, names in (("prediction_type", "prediction", PREDICTIONS), ("variance_type", "variance", VARIANCES)):
        own = {f"ddpm_cli.diffusion.{group}.{ours}": theirs for theirs, ours in names.items()}
        target = str(config[group]["_target_"])
        if target not in own:
            raise UserError(f"{group}={target.rpartition('.')[2].lower()}: no scheduler of diffusers knows it")
        found[key] = own[target]
    return found
