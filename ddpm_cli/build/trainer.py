"""The objects of a training run: made once from the configuration, then joined alike on every rank."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ddpm_cli.build.adapter import adapt
from ddpm_cli.build.autoencoder import is_autoencoder, is_of_latents
from ddpm_cli.build.averages import build_averaging
from ddpm_cli.build.instantiate import make, make_asking
from ddpm_cli.build.machine import Machine, choose_machine, forward_flops
from ddpm_cli.build.model import (
    Config,
    build_condition,
    build_denoiser,
    build_medium,
    build_representation,
    build_sampler,
    input_shape,
    item_shape,
    mirrors,
    null_label,
)
from ddpm_cli.config.durations import seconds_of
from ddpm_cli.data.conditions import Conditions
from ddpm_cli.data.loading.augment import NUM_LABELS, GeometricAugment
from ddpm_cli.data.loading.batches import Batches
from ddpm_cli.data.prepare.cache import cache_folder
from ddpm_cli.data.prepare.latents import encoded
from ddpm_cli.data.store import Store
from ddpm_cli.diffusion.compatibility import check_objective
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.losses import Loss
from ddpm_cli.diffusion.samplers import Sampler
from ddpm_cli.diffusion.timesteps import Timesteps
from ddpm_cli.errors import UserError
from ddpm_cli.media.base import Medium
from ddpm_cli.system.device import choose_determinism, choose_device
from ddpm_cli.system.peak import peak_tflops
from ddpm_cli.system.precision import PRECISIONS, set_float32
from ddpm_cli.training.ema import EMA
from ddpm_cli.training.journal import Work
from ddpm_cli.training.random_numbers import Draws
from ddpm_cli.training.state import TrainState
from ddpm_cli.training.step import StepSettings, TrainStep

log = logging.getLogger("ddpm_cli")


@dataclass(frozen=True)
class Parts:
    """What a configuration names beside its data: made, and found to fit together."""

    denoiser: Denoiser
    flops_per_image: int
    machine: Machine
    loss: Loss
    timesteps: Timesteps
    augment: GeometricAugment | None
    sampler: Sampler  # of previews


def build_parts(cfg: Config, stored: Mapping[str, Any] = MappingProxyType({})) -> Parts:
    """Every object of a run that needs neither data nor a device: on the CPU, or under torch.device("meta") without
    memory. UserError for what only the objects themselves know to be wrong.

    stored: the checkpoint of a resumed run, whose precision it goes on with.
    """
    # The weights are the first draws after the seed: whatever else is made must come behind them, or every seed would
    # stand for another network.
    torch.manual_seed(cfg["seed"])
    denoiser = build_denoiser(cfg)
    adapt(denoiser.network, cfg)
    flops = forward_flops(denoiser.network, input_shape(cfg))  # what `precision=auto` goes by
    machine = choose_machine(cfg, flops, 3 * _images(cfg, flops), stored)  # a backward pass costs two forward ones
    loss, timesteps = build_objective(cfg, denoiser)
    augment = build_augment(cfg, denoiser.network)
    with torch.device("cpu"):  # samplers compute their coefficients in plain numbers
        sampler = build_sampler(cfg, denoiser)
    return Parts(denoiser, flops, machine, loss, timesteps, augment, sampler)


def work_of(parts: Parts, num_ranks: int) -> Work:
    """What an image of a step costs each rank, a backward pass counted as two forward ones; and what the device can
    do."""
    machine, peak = parts.machine, None
    if machine.device.type == "cuda":
        peak = peak_tflops(torch.cuda.get_device_name(machine.device), machine.precision)
    return Work(3e-12 * parts.flops_per_image / num_ranks, peak)


def assembled(cfg: Config, parts: Parts, store: Store) -> tuple[TrainStep, TrainState]:
    """The run before its first step, on its device; the same bits on every rank."""
    choose_determinism(cfg["deterministic"])  # before the device does its first work
    machine, network = parts.machine, parts.denoiser.network
    set_float32(machine.precision)
    # A convolution's weights decide the layout of its output, and Inductor would choose the slower one by its own rule.
    layout = torch.channels_last if machine.device.type == "cuda" else torch.contiguous_format
    network.to(machine.device).to(memory_format=layout)  # type: ignore[call-overload]
    parts.denoiser.amp_dtype = PRECISIONS[machine.precision]
    return build_train_step(cfg, parts, store), build_state(cfg, parts)


def _images(cfg: Config, flops_per_image: int) -> float:
    """How many the run will train on, at most; with a budget about as many as a large GPU gets through."""
    if cfg.get("budget") is not None:
        return seconds_of(cfg["budget"]) * 1e14 / (3 * flops_per_image)
    return cfg["training"]["num_steps"] * cfg["training"]["batch_size"]


def compile_network(network: nn.Module, *, one_pass: bool) -> None:
    """For the steps to come: after the average is copied from it, which a compiled network does not allow, and after
    micro-batches are tried, each of whose sizes would be compiled.

    one_pass: a step calls it once. Then its kernels are also replayed as a CUDA graph, since to launch each by itself
    takes longer than the kernels do; gradients that add up over several calls would be written over. Not where bits
    are to repeat: that they do under graphs has not been measured.
    """
    graphs = one_pass and next(network.parameters()).is_cuda and not torch.are_deterministic_algorithms_enabled()
    network.compile(dynamic=False, mode="reduce-overhead" if graphs else None)


def build_objective(cfg: Config, denoiser: Denoiser) -> tuple[Loss, Timesteps]:
    """The loss and the distribution of timesteps; UserError where they cannot train this denoiser."""
    trust = cfg.get("trust", [])
    loss = make("loss", cfg["loss"], trust, weighting=make("weighting", cfg["weighting"], trust))
    if loss.of_autoencoders != is_autoencoder(cfg):
        raise UserError("loss=autoencoding and model=autoencoder_kl go together: experiment=autoencoder")
    training = cfg["training"]
    if loss.of_autoencoders and (training["sample_every"] or training["heldout_every"] or cfg.get("eval_every")):
        raise UserError("an autoencoder draws nothing: training.sample_every=0 training.heldout_every=0, no eval_every")
    timesteps = make_asking("timesteps", cfg["timesteps"], trust, num_timesteps=denoiser.schedule.num_timesteps)
    try:
        check_objective(denoiser, loss, timesteps)
    except ValueError as error:
        raise UserError(str(error)) from error
    return loss, timesteps


def build_data(cfg: Config) -> Store:
    """The prepared data set, of the shape and number of classes the configuration states: what the model sees of it."""
    node, medium = cfg["dataset"], build_medium(cfg)
    sounds = {"representation": build_representation(cfg)} if "sample_rate" in node else {}
    store: Store = make("dataset", node, cfg.get("trust", []), **sounds)
    if store.item_shape != medium.outside.item_shape:
        raise UserError(f"dataset: items are {store.item_shape}, the configuration says {medium.outside.item_shape}")
    return _encoded(cfg, store, medium) if is_of_latents(cfg) else store


def build_files(cfg: Config) -> Store:
    """The data set as its files hold it: of a model of latents the images, which it is measured by."""
    return build_data({**cfg, "representation": None} if is_of_latents(cfg) else cfg)


def _encoded(cfg: Config, store: Store, medium: Medium) -> Store:
    """The latents of a set of images, kept where its prepared copy is, or that of others where it has none."""
    node, dataset = cfg["representation"], cfg["dataset"]
    return encoded(
        store,
        medium,
        cache_folder(dataset.get("root") or "data", dataset.get("cache")),
        autoencoder={key: node[key] for key in ("sha256", "scale_factor")},
        dtype=node["dtype"],
        mirrored=dataset.get("flip", False),
        device=choose_device(cfg["device"]),
    )


def build_conditions(cfg: Config, store: Store) -> Conditions | None:
    """What the items of `store`, made by the configuration, are drawn from; None where that is noise alone."""
    condition = build_condition(cfg)
    return None if condition is None else Conditions.of(condition, cfg["dataset"], store)


def build_augment(cfg: Config, network: nn.Module) -> GeometricAugment | None:
    """The augmentations; UserError for a network that is not told of them and so would draw them."""
    probability = cfg["training"].get("augment", 0.0)
    if probability and network.augment_dim != NUM_LABELS:
        raise UserError(
            f"training.augment={probability} needs a network that is told of augmentations: "
            f"choose model=ddpmpp_cifar10 (model.augment_dim={NUM_LABELS}), or training.augment=0"
        )
    if probability and (len(item_shape(cfg)) != 3 or is_of_latents(cfg)):
        raise UserError(f"training.augment={probability} is for images; set training.augment=0")
    return GeometricAugment(probability) if probability else None


def build_optimizer(
    cfg: Config, network: nn.Module, learned: Iterable[nn.Module] = (), precision: str = "fp32"
) -> torch.optim.Optimizer:
    """The optimiser of all that is trained, fused into one kernel where it can be. precision: of the run; one that
    multiplies matrices may do that in bf16 too.

    weight_decay_of=matrices leaves norms, biases, embeddings and what learns beside the network without decay: nothing
    is gained by drawing a gain, whose neutral value is 1, or the log of an error to 0. all: as runs have it that were
    begun before there was a choice.
    """
    trained = [p for module in (network, *learned) for p in module.parameters() if p.requires_grad]
    groups: list[Any] = [{"params": trained}]
    if cfg["optimizer"].get("weight_decay_of", "all") == "matrices":
        embeddings = {id(p) for m in network.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        matrices = {id(p) for p in network.parameters() if p.ndim > 1} - embeddings
        groups = [
            {"params": [p for p in trained if id(p) in matrices]},
            {"params": [p for p in trained if id(p) not in matrices], "weight_decay": 0.0},
        ]
    offered: dict[str, Any] = {"fused": True, "compute_dtype": torch.bfloat16 if precision == "bf16" else torch.float32}
    return make_asking("optimizer", cfg["optimizer"], cfg.get("trust", []), params=groups, **offered)


def freeze(network: nn.Module, names: Sequence[str]) -> None:
    """The weights of these modules stay as they are; UserError for one that there is not, or where nothing is left."""
    for name in names:
        found = [p for key, p in network.named_parameters() if key == name or key.startswith(f"{name}.")]
        if not found:
            there = ", ".join(dict.fromkeys(key.split(".")[0] for key, _ in network.named_parameters()))
            raise UserError(f"training.freeze: the network has no {name}; it has {there}")
        for parameter in found:
            parameter.requires_grad_(False)
    count, trained = (sum(p.numel() for p in network.parameters() if p.requires_grad >= least) for least in (0, 1))
    if not trained:
        raise UserError("training.freeze leaves nothing to train; leave a module out of it")
    if trained < count:
        log.info("%s of %s parameters are trained", f"{trained:,}", f"{count:,}")


def build_state(cfg: Config, parts: Parts) -> TrainState:
    """The state at step 0; a weighting or timesteps distribution that learns is trained along."""
    network, device = parts.denoiser.network, parts.machine.device
    freeze(network, cfg["training"].get("freeze", ()))
    candidates: dict[str, Any] = {"weighting": parts.loss.weighting, "timesteps": parts.timesteps}
    learned = {name: part.to(device) for name, part in candidates.items() if part.learned}
    scaler = torch.amp.GradScaler(device.type, enabled=parts.machine.precision == "fp16")
    decays = build_averaging(cfg).decays(cfg["training"]["batch_size"])
    emas = {name: EMA(network, decay) for name, decay in decays.items()}
    optimizer = build_optimizer(cfg, network, learned.values(), parts.machine.precision)
    return TrainState(network, emas, optimizer, scaler, learned)


def build_train_step(cfg: Config, parts: Parts, store: Store) -> TrainStep:
    training, optimizer, device = cfg["training"], cfg["optimizer"], parts.machine.device
    batch_size, micro, seed = training["batch_size"], training["micro_batch_size"], cfg["seed"]
    weights = sum(parameter.nbytes for parameter in parts.denoiser.network.parameters())
    reserved = 4 * weights  # the gradient, the optimiser's two moments and the average, which are not there yet
    flip = mirrors(cfg)
    batches = Batches(store, batch_size, seed, flip, device, reserved)
    conditions = build_conditions(cfg, store)
    beside = None if conditions is None else conditions.in_batches(batch_size, seed, flip, device)
    settings = StepSettings(
        num_steps=training["num_steps"],
        batch_size=batch_size,
        micro_batch_size=batch_size if micro in (None, "auto") else micro,
        max_grad_norm=training["max_grad_norm"],
        label_dropout=training["label_dropout"],
        null_label=null_label(parts.denoiser.network),
        lr=optimizer["lr"],
        warmup_steps=optimizer["warmup_steps"],
        decay=optimizer["decay"],
        coupling=training.get("coupling", "none"),
        reference_steps=optimizer.get("reference_steps"),
    )
    draws = Draws(seed, batch_size, device)
    return TrainStep(
        parts.denoiser, parts.loss, parts.timesteps, batches.batch, draws, settings, parts.augment, beside
    )  # fmt: skip
