"""model=auto: how large a network a run can teach.

A larger network learns more from an image, and sees fewer of them in the same time. The best size grows with the root
of all that is computed (as of language models, Hoffmann et al. 2022), and so the images that are seen grow likewise.
The root's factor and the networks it chooses from were found by experiment (docs/recipes.md).
"""

import logging
import math
import time
from typing import Any

import torch
from torch import nn

from ddpm_cli.build.machine import forward_flops
from ddpm_cli.build.model import build_denoiser, input_shape, item_shape
from ddpm_cli.config.durations import seconds_of
from ddpm_cli.errors import UserError
from ddpm_cli.system.device import choose_device
from ddpm_cli.system.precision import PRECISIONS, choose_precision

log = logging.getLogger("ddpm_cli")

OPEN = ("patch_size", "channels", "channel_mult", "blocks_per_level", "attention_levels")  # null in model=auto

Config = dict[str, Any]
Size = dict[str, Any]  # by name of a model's setting

# Networks of 0.08 to 0.16 GFLOP a forward pass of an image were the best of those that 5e13 FLOP of training can teach.
_FLOPS, _COMPUTE = 0.13e9, 5e13
_EFFICIENCY = 0.6  # of what a convolution alone reaches
_PROBE = 0.2  # seconds of convolutions
# From small to large: the side of level 0 that patches lead to, channels, channel_mult, residual blocks a level.
_LADDER = [
    *[(16, channels, [1, 2], 1) for channels in (16, 24, 32, 40, 48, 56, 64, 80, 96)],
    *[(32, channels, [1, 2, 2], 2) for channels in (48, 64, 80, 96)],
    *[(32, channels, [1, 2, 2, 2], 2) for channels in (128, 160, 192)],
]


def with_network_sized(cfg: Config) -> Config:
    """The configuration with the settings of model=auto that are null chosen; UserError where it is not for images."""
    free = [key for key in OPEN if cfg["model"].get(key, 0) is None]
    if not free:
        return cfg
    shape = item_shape(cfg)
    if len(shape) != 3:
        raise UserError("model=auto chooses networks of images and spectrograms; for waveforms set model=unet1d")
    wanted = _flops_worth(cfg)
    found = cfg
    for rung in _LADDER:
        size = _size(*rung, shape)
        larger = {**cfg, "model": {**cfg["model"], **{key: size[key] for key in free}}}
        if found is not cfg and _flops(larger) > wanted:
            break
        found = larger
    told = " ".join(f"model.{key}={found['model'][key]}".replace(" ", "") for key in free)
    log.info("model=auto: %s, %.2g GFLOP an image, of %.2g that are worth it", told, _flops(found) / 1e9, wanted / 1e9)
    return found


def _flops_worth(cfg: Config) -> float:
    """Operations of a forward pass of the best network for all that will be computed, or for the images of the run."""
    factor = _FLOPS / math.sqrt(_COMPUTE)
    if cfg.get("budget") is None:
        images = cfg["training"]["num_steps"] * cfg["training"]["batch_size"]
        return factor**2 * 3 * images  # of f = factor sqrt(3 f images)
    return factor * math.sqrt(seconds_of(cfg["budget"]) * speed(cfg))


def speed(cfg: Config) -> float:
    """Operations a second that training a network reaches on this run's device, roughly, by a convolution like those of
    a U-Net."""
    device = choose_device(cfg["device"])
    dtype = PRECISIONS[choose_precision(cfg["precision"], device, 1.0)] or torch.float32
    batch = 16 if device.type == "cpu" else 256
    layer = nn.Conv2d(64, 64, 3, padding=1).to(device, dtype)
    x = torch.randn(batch, 64, 16, 16, device=device, dtype=dtype, requires_grad=True)
    flops, calls, began = 3 * 2 * 9 * 64 * 64 * 16 * 16 * batch, 0, 0.0
    for warm in (False, True):
        began, calls = time.perf_counter(), 0
        while time.perf_counter() - began < (_PROBE if warm else _PROBE / 4):
            layer(x).sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            calls += 1
    return _EFFICIENCY * flops * calls / (time.perf_counter() - began)


def _flops(cfg: Config) -> int:
    with torch.device("meta"):
        return forward_flops(build_denoiser(cfg).network, input_shape(cfg))


def _size(side: int, channels: int, mult: list[int], blocks: int, shape: tuple[int, ...]) -> Size:
    """The network whose level 0 is nearest to `side` pixels, with as many levels as the image can be halved."""
    sides = shape[1:]
    for levels in range(len(mult), 0, -1):
        halved = 2 ** (levels - 1)
        patches = [p for p in range(1, min(sides) + 1) if all(length % (p * halved) == 0 for length in sides)]
        if patches:
            break
    patch = min(patches, key=lambda p: (abs(math.log(math.sqrt(math.prod(sides)) / p / side)), p))
    settings = {"patch_size": patch, "channels": channels, "channel_mult": mult[:levels], "blocks_per_level": blocks}
    return {**settings, "attention_levels": [min(1, levels - 1)]}
