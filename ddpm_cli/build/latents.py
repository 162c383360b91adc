"""The scale of a model's latents, measured on its data (Rombach et al. 2022, Appendix G)."""

import logging
import math
from typing import Any

import torch

from ddpm_cli.build.autoencoder import is_unmeasured
from ddpm_cli.build.model import build_medium
from ddpm_cli.build.trainer import build_data
from ddpm_cli.errors import UserError
from ddpm_cli.system.device import choose_device

log = logging.getLogger("ddpm_cli")
_NUM_IMAGES = 256

Config = dict[str, Any]


def with_latents_scaled(cfg: Config) -> Config:
    """The configuration with scale_factor=one or each as the numbers they are for its data, to four digits: 1 over the
    standard deviation of the latents of 256 images. How well these are reconstructed is told: no model of latents draws
    better images."""
    if not is_unmeasured(cfg):
        return cfg
    node = cfg["representation"]
    store = build_data({**cfg, "representation": None})
    medium = build_medium({**cfg, "representation": {**node, "scale_factor": 1.0}})
    rows = torch.linspace(0, len(store) - 1, min(_NUM_IMAGES, len(store))).long()  # all over it, as a set may be sorted
    files = store.to_file(store.items[rows]).to(choose_device(cfg["device"]))
    latents = medium.to_model(files)
    images = medium.outside
    error = (images.to_model(medium.to_file(latents)) - images.to_model(files)).double().square().mean()
    values = latents.double().cpu().movedim(1, 0).flatten(1)
    deviations = values.std(1) if node["scale_factor"] == "each" else values.std()[None]
    if not bool((deviations.isfinite() & (deviations > 0)).all()):
        raise UserError("representation.scale_factor: the latents do not vary, or are not finite")
    scales = [float(f"{1 / deviation:.4g}") for deviation in deviations.tolist()]
    scale = scales if node["scale_factor"] == "each" else scales[0]
    psnr = math.inf if error == 0 else 10 * math.log10(4 / float(error))
    told = "the autoencoder gives %d images of the data back at %.1f dB (PSNR); its latents are multiplied by %s"
    log.info(told, len(rows), psnr, scale)
    return {**cfg, "representation": {**node, "scale_factor": scale}}
