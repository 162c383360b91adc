"""The network, its noise schedule and what joins them: the denoiser; and its sampler."""

from functools import partial
from typing import Any

import torch
from torch import nn

from ddpm_cli.build.autoencoder import is_of_latents, network_of
from ddpm_cli.build.instantiate import make, make_asking
from ddpm_cli.data.conditions import Condition
from ddpm_cli.diffusion import schedule as schedules
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.samplers import Sampler
from ddpm_cli.diffusion.variance import Variance
from ddpm_cli.errors import UserError
from ddpm_cli.media.arrays import medium_of
from ddpm_cli.media.base import Medium
from ddpm_cli.media.image_files import sides
from ddpm_cli.media.latents import LatentImages
from ddpm_cli.media.sounds import Sounds
from ddpm_cli.training.state import TrainState

Config = dict[str, Any]


def build_medium(cfg: Config) -> Medium:
    """What the items are outside the model: images or sounds, of which it may see a representation."""
    node = cfg["dataset"]
    if "sample_rate" in node:
        return Sounds(build_representation(cfg), node["num_samples"], node["sample_rate"])
    shape = (node["channels"], *sides(node["image_size"]))
    images = medium_of(shape, node.get("dtype", "uint8"), node.get("range"))
    return LatentImages(images, build_representation(cfg)) if is_of_latents(cfg) else images


def build_representation(cfg: Config) -> Any:
    """What the model sees of a sound, or of an image."""
    node = cfg["representation"]
    frozen = {"network": partial(network_of, node)} if is_of_latents(cfg) else {}
    return make("representation", node, cfg.get("trust", []), **frozen)


def mirrors(cfg: Config) -> bool:
    """Whether batches mirror items at random. Of latents the set holds the mirror images beside the images."""
    return bool(cfg["dataset"].get("flip", False)) and not is_of_latents(cfg)


def item_shape(cfg: Config) -> tuple[int, ...]:
    """Of the items the configuration asks for: (C, H, W) of images."""
    return build_medium(cfg).item_shape


def build_condition(cfg: Config) -> Condition | None:
    """What items are drawn from beside noise and class; UserError where these data have no such thing."""
    node = cfg.get("condition")
    if node is None:
        return None
    condition: Condition = make("condition", node, cfg.get("trust", []))
    if not condition.vector and cfg.get("representation") is not None:
        raise UserError("condition: sounds and latents have condition=vector alone; choose that, or leave it out")
    try:
        condition.num_shown(item_shape(cfg))
    except ValueError as error:
        raise UserError(str(error)) from error
    return condition


def input_shape(cfg: Config) -> tuple[int, ...]:
    """Of what the network takes: an item, and behind its channels those of a condition."""
    channels, *size = item_shape(cfg)
    return (channels + num_condition_channels(cfg), *size)


def num_condition_channels(cfg: Config) -> int:
    """How many channels the network is shown behind an item's."""
    condition = build_condition(cfg)
    return 0 if condition is None or condition.vector else condition.num_shown(item_shape(cfg))


def build_schedule(cfg: Config) -> schedules.NoiseSchedule:
    """The noise schedule, with zero terminal SNR and the network's time rescaled where asked for."""
    node = cfg["schedule"]
    with torch.device("cpu"):
        schedule = make("schedule", node, cfg.get("trust", []))
        try:
            schedule = schedules.zero_terminal_snr(schedule) if node.get("zero_terminal_snr") else schedule
        except ValueError as error:
            raise UserError(str(error)) from error
    return schedules.rescaled_time(schedule) if node.get("rescale_time") else schedule


def build_denoiser(cfg: Config) -> Denoiser:
    """Network, schedule, prediction and variance, joined. Call it under torch.device("meta") to build without
    memory."""
    trust = cfg.get("trust", [])
    schedule, prediction = build_schedule(cfg), make("prediction", cfg["prediction"], trust)
    variance = make_asking("variance", cfg["variance"], trust, estimate=None)
    model = dict(cfg["model"])
    if model.get("class_conditional") and not cfg["dataset"].get("num_classes"):
        model["class_conditional"] = False  # an unlabelled set has no classes to condition on
    outputs = model["in_channels"] * (2 if variance.learned else 1)
    joined = {"out_channels": outputs}
    if (condition := build_condition(cfg)) is not None:
        model["in_channels"] += num_condition_channels(cfg)
        joined |= {"vector_dim": condition.num_shown(item_shape(cfg))} if condition.vector else {}
    network = make_asking("model", model, trust, joined, time_span=schedule.time_span)
    try:
        check_dims(network, item_shape(cfg))
        network.check_input(item_shape(cfg))
        return Denoiser(network, schedule, prediction, variance)
    except ValueError as error:
        raise UserError(str(error)) from error


def check_dims(network: nn.Module, shape: tuple[int, ...]) -> None:
    """ValueError for a network of images that is to draw waveforms, and the other way round."""
    if len(shape) - 1 != network.dims:
        of_images = "model=unet_small or another one of images, or for waveforms representation=waveform"
        fitting = {1: "model=unet1d", 2: of_images}.get(len(shape) - 1, "another")
        sizes = "x".join(map(str, shape))
        raise ValueError(f"model: the network takes items of {network.dims} dimensions, not {sizes}; choose {fitting}")


def null_label(network: nn.Module) -> int | None:
    """The label that stands for no class, None for an unconditional network."""
    return network.num_classes if network.class_conditional else None  # type: ignore[return-value]


def build_sampler(cfg: Config, denoiser: Denoiser, variance: Variance | None = None) -> Sampler:
    """The sampler; UserError where it cannot walk the denoiser's schedule with this sigma_theta (None: its own)."""
    sampler, one = make("sampler", cfg["sampler"], cfg.get("trust", [])), torch.zeros(1, 1, 1, 1)
    try:  # called, but asked for no step: a sampler computes what it needs, and refuses, when it is called
        sampler(denoiser, one, denoiser.schedule, variance or denoiser.variance, lambda i: one)
    except ValueError as error:
        raise UserError(str(error)) from error
    return sampler


def ema_denoiser(denoiser: Denoiser, state: TrainState) -> Denoiser:
    """The same denoiser with the averaged weights, following them as training goes on."""
    averaged = Denoiser(state.emas["ema"].network, denoiser.schedule, denoiser.prediction, denoiser.variance)
    averaged.amp_dtype = denoiser.amp_dtype
    return averaged
