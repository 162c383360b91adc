"""A folder of diffusers' AutoencoderKL: its settings as a `model` of ours, and its weights.

A setting that would make another network is refused by its name; what the file leaves out has diffusers' own default.
"""

import json
from pathlib import Path
from typing import Any

from ddpm_cli.errors import UserError
from ddpm_cli.formats.diffusers import read_weights
from ddpm_cli.formats.diffusers_config import WEIGHTS
from ddpm_cli.formats.settings import Config, read_json
from ddpm_cli.formats.tensors import write_tensors
from ddpm_cli.run_dir.checkpoint import Weights

TARGET = "ddpm_cli.models.autoencoder.AutoencoderKL"
_NAMES: dict[str, tuple[str, Any]] = {  # ours: diffusers' name and default
    "in_channels": ("in_channels", 3),
    "latent_channels": ("latent_channels", 4),
    "channels": ("block_out_channels", [64]),
    "blocks_per_level": ("layers_per_block", 1),
    "norm_num_groups": ("norm_num_groups", 32),
    "attention": ("mid_block_add_attention", True),
    "quant_conv": ("use_quant_conv", True),
}
_PICKLED = "diffusion_pytorch_model.bin"
# What of a folder says nothing of the encoder and the decoder.
_PASSED = {"sample_size", "scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast"}


def folder_of(path: Path) -> Path | None:
    """Where diffusers keeps an AutoencoderKL, of a path that is its folder or that of a pipeline; None if nowhere."""
    places = (path, path / "vae")
    return next((place for place in places if (place / "config.json").is_file()), None)


def read(folder: Path) -> tuple[Config, Weights, float]:
    """The node of our AutoencoderKL, its weights and the scaling factor that the folder states."""
    file = folder / "config.json"
    given = read_json(file)
    model = _model(given, file)
    weights = next((folder / name for name in (WEIGHTS, _PICKLED) if (folder / name).is_file()), None)
    if weights is None:
        raise UserError(f"{folder}: no {WEIGHTS} beside its config.json")
    try:
        scale = float(given.get("scaling_factor", 0.18215))
    except (TypeError, ValueError):
        raise UserError(f"{file}: scaling_factor={given['scaling_factor']} is no number") from None
    return model, read_weights(weights), scale


def _model(given: Config, file: Path) -> Config:
    if given.get("_class_name") != "AutoencoderKL":
        kind = given.get("_class_name")
        raise UserError(f"{file} is of a {kind}; of diffusers' autoencoders AutoencoderKL is opened")
    values = {ours: given.get(name, default) for ours, (name, default) in _NAMES.items()}
    levels = len(values["channels"]) if isinstance(values["channels"], list) else 0
    only = {  # the values that ours can have, diffusers' default first
        "out_channels": [3, values["in_channels"]],
        "act_fn": ["silu", "swish"],
        "down_block_types": [["DownEncoderBlock2D"] * levels],
        "up_block_types": [["UpDecoderBlock2D"] * levels],
        "use_post_quant_conv": [True, values["quant_conv"]],
    }
    for name, allowed in only.items():
        value = given.get(name, allowed[0])
        if value not in allowed[-1:] and not (name == "act_fn" and value in allowed):
            raise UserError(f"{file}: {name}={value} is another network than ours, which has {name}={allowed[-1]}")
    known = {*only, *_PASSED, *(name for name, _ in _NAMES.values())}
    strange = [name for name, value in given.items() if name not in known and name[0] != "_" and value is not None]
    if strange:
        raise UserError(f"{file}: {strange[0]}={given[strange[0]]} is a setting that is not known here; leave it out")
    return {"_target_": TARGET, **values}


def write(folder: Path, model: Config, weights: Weights) -> None:
    """As AutoencoderKL.from_pretrained(folder) loads it. The latents are as they come: its scaling factor is 1."""
    levels = len(model["channels"])
    told: Config = {"_class_name": "AutoencoderKL", "act_fn": "silu", "out_channels": model["in_channels"]}
    told |= {name: model[ours] for ours, (name, _) in _NAMES.items()}
    told |= {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    told |= {"use_post_quant_conv": model["quant_conv"], "scaling_factor": 1.0}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    write_tensors(folder / WEIGHTS, weights, {})
