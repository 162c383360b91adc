"""What a configuration amounts to before anything is done: parameters, cost, device, format."""

from typing import Any

import torch
from torch import nn

from ddpm_cli.build.instantiate import name_of
from ddpm_cli.build.machine import forward, num_ranks
from ddpm_cli.build.model import input_shape, item_shape, null_label
from ddpm_cli.build.network_size import speed
from ddpm_cli.build.trainer import Parts, build_parts
from ddpm_cli.config.durations import seconds_of
from ddpm_cli.system.precision import PRECISIONS

_FEW, _OFTEN = 1000, 200  # of 167 photographs, each seen 795 times, 80 % of what was drawn were copies


def describe(cfg: dict[str, Any]) -> dict[str, Any]:
    """The summary of a training run, by name; needs neither data nor memory. UserError where its parts do not fit."""
    with torch.device("meta"):
        parts = build_parts(cfg)
    denoiser, machine, training, optimizer = parts.denoiser, parts.machine, cfg["training"], cfg["optimizer"]
    groups = ("dataset", "schedule", "model", "prediction", "variance", "weighting", "timesteps", "loss", "sampler")
    known = {
        **{group: name_of(cfg[group]) for group in groups},
        **({"condition": name_of(cfg["condition"])} if cfg.get("condition") is not None else {}),
        "num_timesteps": denoiser.schedule.num_timesteps,
        "item_shape": "x".join(map(str, item_shape(cfg))),
        "classes": cfg["dataset"]["num_classes"] if null_label(denoiser.network) is not None else "unconditional",
        "flip": cfg["dataset"].get("flip", False),
        "parameters": sum(p.numel() for p in denoiser.network.parameters()),
        **({} if cfg.get("adapter") is None else {"trained_parameters": _trained(denoiser.network)}),
        "flops_per_image": parts.flops_per_image,
        "optimizer": name_of(optimizer),
        "lr": optimizer["lr"],
        "warmup_steps": optimizer["warmup_steps"],
        "lr_decay": optimizer["decay"],
        "max_grad_norm": training["max_grad_norm"],
        "dropout": cfg["model"].get("dropout", 0.0),
        **{f"ema_{key}": cfg["ema"][key] for key in ("decay", "half_life", "lengths") if key in cfg["ema"]},
        "batch_size": training["batch_size"],
        "micro_batch_size": training["micro_batch_size"] or training["batch_size"],
        "num_steps": training["num_steps"],
        "images_seen": training["num_steps"] * training["batch_size"],
        "device": str(machine.device),
        "devices": num_ranks(cfg, cfg["training"]["batch_size"]),
        "precision": machine.precision,
        "compile": machine.compile,
        "memory": f"about {_memory(parts, cfg) / 2**30:.2g} GiB",
    }
    return {**known, **_budget(cfg, parts)} if cfg.get("budget") is not None else known


def repeated(num_items: int, many: str, items_seen: int) -> str | None:
    """What a run is to be told that sees a small set so often that it learns it by heart; else None."""
    times = items_seen / num_items
    if num_items > _FEW or times < _OFTEN:
        return None
    measured = "; ddpm-eval metrics=[memorisation] of a run with dataset.split=train says how many"
    told = f"each of the {num_items:,} {many} is seen {times:,.0f} times: expect copies of them among what is drawn"
    return told + (measured if many == "images" else "")  # of sounds there is no such metric


def _trained(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def _memory(parts: Parts, cfg: dict[str, Any]) -> float:
    """Bytes of a step, beside torch's own and the data: the weights and their average, of those that are trained the
    gradient and two moments, all in float32; and what the graph of the images that go through at once keeps for the
    backward pass, in the run's precision."""
    training = cfg["training"]
    at_once = training["micro_batch_size"] if isinstance(training["micro_batch_size"], int) else training["batch_size"]
    share = min(at_once, training["batch_size"] // num_ranks(cfg, training["batch_size"]))
    halved = 1 if PRECISIONS[parts.machine.precision] is None else 0.6  # norms keep their input in float32
    network = parts.denoiser.network
    one, two = (_kept(network, input_shape(cfg), count) for count in (1, 2))
    # What is kept of the weights themselves, such as their norms, does not grow with the images.
    held = sum((5 if p.requires_grad else 2) * p.nbytes for p in network.parameters())
    return held + max(0, 2 * one - two) + share * halved * (two - one)


def _kept(network: nn.Module, shape: tuple[int, ...], count: int) -> int:
    """Bytes that the graph of so many images keeps, beside the weights."""
    kept, weights = dict[int, int](), {p.untyped_storage()._cdata for p in network.parameters()}

    def weigh(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
        out = forward(network, shape, count)
    del out
    return sum(kept.values())


def _budget(cfg: dict[str, Any], parts: Parts) -> dict[str, str]:
    """What is known only roughly before a budget's run has measured its speed."""
    batch = cfg["training"]["batch_size"]
    steps = seconds_of(cfg["budget"]) * speed(cfg) / (3 * parts.flops_per_image * batch)
    fitted = ["warmup_steps", "lr_decay", *(["ema_decay"] if "decay" in cfg["ema"] else [])]
    derived = dict.fromkeys(fitted, "fitted to num_steps unless typed")
    told = {
        "num_steps": f"about {_roughly(steps)}, measured when the run starts",
        "images_seen": f"about {_roughly(steps * batch)}",
    }
    return {**derived, **told, "budget": f"{seconds_of(cfg['budget']):g} s"}


def _roughly(number: float) -> str:
    """Two digits of it: 1,300."""
    return f"{float(f'{number:.2g}'):,.0f}"
