"""A folder of diffusers: a UNet2DModel and its scheduler, as DDPMPipeline and DDIMPipeline load it."""

import json
import re
from pathlib import Path
from typing import Any

import torch

from ddpm_cli.diffusion.noise_schedule import NoiseSchedule
from ddpm_cli.errors import UserError
from ddpm_cli.formats.diffusers_config import EXTRA, FIXED, WEIGHTS, Config, diffusers_names
from ddpm_cli.formats.tensors import read_tensors, write_tensors
from ddpm_cli.run_dir.checkpoint import Weights

_VERSION = "0.42.1"  # of diffusers, whose files these are like
# Attention's layers before diffusers 0.17, as the first models that were published have them.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(rf"(.*\.attentions\.\d+)\.({'|'.join(_OLD)})\.(weight|bias)")


def read_weights(file: Path) -> Weights:
    """The weights by the names of now."""

    def renamed(name: str) -> str:
        old = _OLD_NAME.fullmatch(name)
        return f"{old[1]}.{_OLD[old[2]]}.{old[3]}" if old else name

    return {renamed(name): tensor for name, tensor in read_tensors(file).items()}


def write(folder: Path, unet: Config, weights: Weights, scheduler: Config, extra: Config) -> None:
    """unet: what the network's diffusers_config says, and its sample_size. extra: of ours, which diffusers ignores."""
    for name in ("unet", "scheduler"):
        (folder / name).mkdir(parents=True)
    told: Config = {"_diffusers_version": _VERSION}
    fixed = {name: values[0] for name, values in FIXED.items()}
    _write(folder / "unet/config.json", {"_class_name": "UNet2DModel", **told, EXTRA: extra, **fixed, **unet})
    _write(folder / "scheduler/scheduler_config.json", {"_class_name": "DDPMScheduler", **told, **scheduler})
    write_tensors(folder / "unet" / WEIGHTS, weights, {})
    parts = {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    _write(folder / "model_index.json", {"_class_name": "DDPMPipeline", **told, **parts})


def _write(file: Path, content: Config) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def folded(weights: Weights, embedding: torch.Tensor) -> Weights:
    """The weights of a network without classes that draws one alone: its embedding (1, E), which is added to that of
    every time, becomes a part of that."""
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("class_embedding.")}
    return {**kept, "time_embedding.linear_2.bias": kept["time_embedding.linear_2.bias"] + embedding[0]}


def scheduler_config(config: dict[str, Any], schedule: NoiseSchedule, clip: bool) -> Config:
    """The settings of the scheduler that has this schedule's levels; UserError where none of diffusers' can."""
    times = torch.arange(1, schedule.num_timesteps + 1)
    if not torch.equal(schedule.network_time(times), (times - 1).double()):
        raise UserError("schedule: its network is told of another time than diffusers tells, t - 1")
    if schedule.prior_scale != 1 or not torch.allclose(schedule.alpha**2 + schedule.sigma**2, torch.ones(1).double()):
        raise UserError("schedule: its levels are not those of a scheduler of diffusers, alpha^2 + sigma^2 = 1")
    if schedule.spacing not in ("trailing", "leading", "linspace"):
        raise UserError(f"schedule: no scheduler of DDPM in diffusers has spacing {schedule.spacing}")
    return {
        "num_train_timesteps": schedule.num_timesteps,
        **_betas(config["schedule"], schedule),
        **diffusers_names(config),
        "clip_sample": clip,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "timestep_spacing": schedule.spacing,
        "steps_offset": 0,
    }


def _betas(node: Config, schedule: NoiseSchedule) -> Config:
    """By name where diffusers has the same schedule, else all betas. A schedule stretched to zero terminal SNR is named
    too, since some samplers of diffusers ask whether it is."""
    total, name = schedule.num_timesteps, str(node["_target_"]).removeprefix("ddpm_cli.diffusion.schedule.")
    stretched = bool(node.get("zero_terminal_snr"))
    if name in ("linear", "scaled_linear"):
        scale = 1000 / total
        ends = {key: node[key] * scale for key in ("beta_start", "beta_end")}
        return {"beta_schedule": name, **ends, "rescale_betas_zero_snr": stretched}
    if name == "cosine" and (node["s"], node["max_beta"]) == (0.008, 0.999):
        return {"beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": stretched}
    betas = 1 - schedule.alpha_bar[1:] / schedule.alpha_bar[:-1]
    return {"trained_betas": betas.tolist(), "rescale_betas_zero_snr": False}
