"""From a resolved configuration to objects: the one place that knows config keys and joins what they name.

A configuration here is a plain dict, validated by config.py or read from a checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddpm_cli import checkpoint
from ddpm_cli.data.augment import NUM_LABELS, GeometricAugment
from ddpm_cli.data.batches import Batches
from ddpm_cli.data.store import Store
from ddpm_cli.diffusion import schedule as schedules
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.pairs import check_objective
from ddpm_cli.diffusion.variance import Analytic
from ddpm_cli.errors import UserError
from ddpm_cli.making import make, make_asking
from ddpm_cli.stored import check_stored
from ddpm_cli.training.draws import Draws
from ddpm_cli.training.ema import EMA
from ddpm_cli.training.state import TrainState
from ddpm_cli.training.step import StepSettings, Trainer

Config = dict[str, Any]


def item_shape(cfg: Config) -> tuple[int, ...]:
    """(C, H, W) of the images the configuration asks for."""
    size = cfg["dataset"]["image_size"]
    return (cfg["dataset"]["channels"], *(size if isinstance(size, list) else (size, size)))


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
    network = make("model", model, trust, out_channels=outputs)
    try:
        network.check_input(item_shape(cfg))
        return Denoiser(network, schedule, prediction, variance)
    except ValueError as error:
        raise UserError(str(error)) from error


def null_label(network: nn.Module) -> int | None:
    """The label that stands for no class, None for an unconditional network."""
    return network.num_classes if network.class_conditional else None  # type: ignore[return-value]


def build_objective(cfg: Config, denoiser: Denoiser) -> tuple[Any, Any]:
    """The loss and the distribution of timesteps; UserError where they cannot train this denoiser."""
    trust = cfg.get("trust", [])
    loss = make("loss", cfg["loss"], trust, weighting=make("weighting", cfg["weighting"], trust))
    timesteps = make_asking("timesteps", cfg["timesteps"], trust, num_timesteps=denoiser.schedule.num_timesteps)
    try:
        check_objective(denoiser, loss, timesteps)
    except ValueError as error:
        raise UserError(str(error)) from error
    return loss, timesteps


def build_sampler(cfg: Config, denoiser: Denoiser | None = None) -> Any:
    """The sampler; UserError where it cannot walk the denoiser's schedule."""
    sampler, one = make("sampler", cfg["sampler"], cfg.get("trust", [])), torch.zeros(1, 1, 1, 1)
    try:
        if denoiser is not None:  # samplers compute what they need when called
            sampler(denoiser, one, denoiser.schedule, denoiser.variance, lambda i: one)
    except ValueError as error:
        raise UserError(str(error)) from error
    return sampler


def build_data(cfg: Config) -> Store:
    """The prepared data set, of the shape and number of classes the configuration states."""
    store = make("dataset", cfg["dataset"], cfg.get("trust", []))
    if store.item_shape != item_shape(cfg):
        raise UserError(f"dataset: items are {store.item_shape}, the configuration says {item_shape(cfg)}")
    return store


def build_optimizer(cfg: Config, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser, fused into one kernel where it can be."""
    return make_asking("optimizer", cfg["optimizer"], cfg.get("trust", []), params=parameters, fused=True)


def build_state(
    cfg: Config, network: nn.Module, device: torch.device, precision: str, loss: Any, timesteps: Any
) -> TrainState:
    """The run before its first step. A weighting or timesteps distribution that learns is an nn.Module and trained
    along."""
    candidates = {"weighting": getattr(loss, "weighting", None), "timesteps": timesteps}
    learned = {name: module.to(device) for name, module in candidates.items() if isinstance(module, nn.Module)}
    parameters = [p for module in (network, *learned.values()) for p in module.parameters() if p.requires_grad]
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    emas = {"ema": EMA(network, cfg["ema"]["decay"], cfg["ema"]["warmup"])}
    return TrainState(network, emas, build_optimizer(cfg, parameters), scaler, learned)


def ema_denoiser(denoiser: Denoiser, state: TrainState) -> Denoiser:
    """The same denoiser with the averaged weights, following them as training goes on."""
    averaged = Denoiser(state.emas["ema"].network, denoiser.schedule, denoiser.prediction, denoiser.variance)
    averaged.amp_dtype = denoiser.amp_dtype
    return averaged


def build_trainer(
    cfg: Config, denoiser: Denoiser, store: Store, device: torch.device, loss: Any, timesteps: Any
) -> Trainer:
    training, optimizer, seed = cfg["training"], cfg["optimizer"], cfg["seed"]
    micro = training["micro_batch_size"]
    batches = Batches(store, training["batch_size"], seed, cfg["dataset"].get("flip", False), device)
    settings = StepSettings(
        num_steps=training["num_steps"],
        batch_size=training["batch_size"],
        micro_batch_size=training["batch_size"] if micro in (None, "auto") else micro,
        max_grad_norm=training["max_grad_norm"],
        label_dropout=training["label_dropout"],
        null_label=null_label(denoiser.network),
        lr=optimizer["lr"],
        warmup_steps=optimizer["warmup_steps"],
        decay=optimizer["decay"],
    )
    draws = Draws(seed, training["batch_size"], device)
    return Trainer(denoiser, loss, timesteps, batches.batch, draws, settings, build_augment(cfg, denoiser.network))


def build_augment(cfg: Config, network: nn.Module) -> GeometricAugment | None:
    """The augmentations; UserError for a network that is not told of them and so would draw them."""
    probability = cfg["training"].get("augment", 0.0)
    if probability and getattr(network, "augment_dim", 0) != NUM_LABELS:
        raise UserError(
            f"training.augment={probability} needs a network that is told of augmentations: "
            f"choose model=ddpmpp_cifar10 (model.augment_dim={NUM_LABELS}), or training.augment=0"
        )
    if probability and len(item_shape(cfg)) != 3:
        raise UserError(f"training.augment={probability} is for images; set training.augment=0")
    return GeometricAugment(probability) if probability else None


@dataclass(frozen=True)
class Trained:
    """A denoiser out of a checkpoint, and what the checkpoint says of itself."""

    denoiser: Denoiser
    variance: Any  # what a sampler takes for sigma_theta: the denoiser's own unless it was overridden
    config: Config
    step: int
    class_names: tuple[str, ...] = ()  # empty for an unconditional network, and where the file does not say


def load_trained(
    path: Path | str, weights: str = "ema", variance: Config | None = None, trust: Sequence[str] = ()
) -> Trained:
    """The trained denoiser of a checkpoint, on the CPU, in eval mode. weights: `ema` or `raw`; variance overrides its
    sigma; trust: packages whose classes its configuration may name (what the checkpoint itself says of trust is
    void)."""
    content = checkpoint.load(Path(path))
    cfg = {**content["config"], "trust": list(trust)}
    check_stored(cfg, path)
    denoiser = build_denoiser(cfg)
    sigma = denoiser.variance
    if variance is not None:
        estimate = content.get("analytic", {}).get(weights)
        sigma = make_asking("variance", variance, cfg["trust"], estimate=estimate)
        _check_variance(denoiser, sigma, f"{path} (weights={weights})")
    saved = content["network"] if weights == "raw" else content["emas"].get(weights)
    if saved is None:
        raise UserError(f"weights={weights} are not in {path}; it holds raw, {', '.join(content['emas'])}")
    load_weights(denoiser.network, saved, path)
    return Trained(denoiser.eval().requires_grad_(False), sigma, cfg, content["step"], _class_names(content, denoiser))


def _class_names(content: dict[str, Any], denoiser: Denoiser) -> tuple[str, ...]:
    data = content.get("data")
    names = data.get("class_names") if isinstance(data, dict) else None
    fit = isinstance(names, list) and len(names) == null_label(denoiser.network)
    return tuple(" ".join(str(name).split()) for name in names) if names and fit else ()


def load_denoiser(path: Path | str) -> Denoiser:
    """The trained denoiser of a checkpoint file (EMA weights, eval mode, CPU), ready to be called as (x_t, t, cond)."""
    return load_trained(path).denoiser


def load_weights(network: nn.Module, saved: dict[str, torch.Tensor], path: Path | str) -> None:
    """Strict; UserError names up to three entries that do not fit, and the network is left as it was."""
    mine = network.state_dict()
    wrong = [k for k in mine if k not in saved] + [k for k in saved if k not in mine]
    wrong += [
        f"{k} {tuple(saved[k].shape)} for {tuple(mine[k].shape)}"
        for k in mine
        if k in saved and saved[k].shape != mine[k].shape
    ]
    if wrong:
        raise UserError(f"{path} does not fit this network: {', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}")
    network.load_state_dict(saved)


def _check_variance(denoiser: Denoiser, variance: Any, weights: str) -> None:
    if variance.learned and type(variance) is not type(denoiser.variance):
        raise UserError(
            "variance: this checkpoint's network has no such output; choose variance=fixed_small or fixed_large"
        )
    if isinstance(variance, Analytic) and not variance.measured:
        raise UserError(
            f"variance=analytic has not been measured for {weights}; "
            "run ddpm-analytic ckpt=CHECKPOINT first, or choose variance=fixed_small"
        )
