"""What a configuration amounts to before anything is done: parameters, cost, device, format."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm_cli import build, runtime
from ddpm_cli.argv import place_of
from ddpm_cli.durations import seconds_of
from ddpm_cli.making import name_of


@dataclass(frozen=True)
class Machine:
    """Where and in which number format a run works."""

    device: torch.device
    precision: str
    compile: bool


def forward_flops(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Floating-point operations of the network's forward pass for one image of `shape`, a multiply-add counting two."""
    device = next(network.parameters()).device
    cond = (
        {"labels": torch.zeros(1, dtype=torch.long, device=device)} if build.null_label(network) is not None else None
    )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *shape, device=device), torch.zeros(1, device=device), cond)
    return counter.get_total_flops()


def choose_machine(cfg: dict[str, Any], flops_per_image: int, precision: str | None = None) -> Machine:
    """`precision`: what a resumed run was started with, used again unless this invocation names one."""
    device = runtime.choose_device(cfg["device"])
    wanted = precision if precision and cfg["precision"] == "auto" else cfg["precision"]
    return Machine(
        device,
        runtime.choose_precision(wanted, device, flops_per_image / 1e9),
        runtime.choose_compile(cfg.get("compile", False), device),
    )


def choose_devices(cfg: dict[str, Any]) -> int:
    """How many ranks share each batch: as many as a launcher started, else as many as the configuration asks for."""
    place = place_of(os.environ)
    if place is not None:
        return place.world
    return runtime.choose_devices(cfg.get("devices", 1), cfg["device"], cfg["training"]["batch_size"])


def describe(cfg: dict[str, Any]) -> dict[str, Any]:
    """The plan of a training run, by name; needs neither data nor memory."""
    with torch.device("meta"):
        denoiser = build.build_denoiser(cfg)
        build.build_objective(cfg, denoiser)  # for their refusals
        build.build_augment(cfg, denoiser.network)
    build.build_sampler(cfg, denoiser)
    shape = build.item_shape(cfg)
    flops = forward_flops(denoiser.network, shape)
    machine, training, optimizer = choose_machine(cfg, flops), cfg["training"], cfg["optimizer"]
    groups = ("dataset", "schedule", "model", "prediction", "variance", "weighting", "timesteps", "loss", "sampler")
    known = {
        **{group: name_of(cfg[group]) for group in groups},
        "num_timesteps": denoiser.schedule.num_timesteps,
        "item_shape": "x".join(map(str, shape)),
        "classes": cfg["dataset"]["num_classes"] if build.null_label(denoiser.network) is not None else "unconditional",
        "flip": cfg["dataset"].get("flip", False),
        "parameters": sum(p.numel() for p in denoiser.network.parameters()),
        "flops_per_image": flops,
        "optimizer": name_of(optimizer),
        "lr": optimizer["lr"],
        "warmup_steps": optimizer["warmup_steps"],
        "lr_decay": optimizer["decay"],
        "max_grad_norm": training["max_grad_norm"],
        "dropout": cfg["model"].get("dropout", 0.0),
        "ema_decay": cfg["ema"]["decay"],
        "batch_size": training["batch_size"],
        "micro_batch_size": training["micro_batch_size"] or training["batch_size"],
        "num_steps": training["num_steps"],
        "images_seen": training["num_steps"] * training["batch_size"],
        "device": str(machine.device),
        "devices": choose_devices(cfg),
        "precision": machine.precision,
        "compile": machine.compile,
    }
    return {**known, **_budget(cfg["budget"])} if cfg.get("budget") is not None else known


def _budget(budget: str) -> dict[str, str]:
    """What is not known before a budget's run has measured its speed."""
    fitted = dict.fromkeys(("warmup_steps", "lr_decay", "ema_decay"), "fitted to num_steps unless typed")
    measured = dict.fromkeys(("num_steps", "images_seen"), "measured when the run starts")
    return {**fitted, **measured, "budget": f"{seconds_of(budget):g} s"}
