"""The objects of a training run, joined alike on every rank."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ddpm_cli import build, plan
from ddpm_cli.data.store import Store
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.runtime import PRECISIONS
from ddpm_cli.training.memory import largest_micro_batch
from ddpm_cli.training.state import TrainState
from ddpm_cli.training.step import Trainer


class Parts(NamedTuple):
    """What a run is made of beside its data."""

    denoiser: Denoiser
    machine: plan.Machine
    loss: Any
    timesteps: Any
    state: TrainState


def assembled(cfg: dict[str, Any], store: Store, precision: str | None) -> Parts:
    """The run before its first step, on its device; the initial weights are a function of the seed. precision: what a
    resumed run was started with."""
    torch.manual_seed(cfg["seed"])
    denoiser = build.build_denoiser(cfg)
    machine = plan.choose_machine(cfg, plan.forward_flops(denoiser.network, store.item_shape), precision)
    layout = torch.channels_last if machine.device.type == "cuda" else torch.contiguous_format
    denoiser.network.to(machine.device).to(memory_format=layout)  # type: ignore[call-overload]
    denoiser.amp_dtype = PRECISIONS[machine.precision]
    loss, timesteps = build.build_objective(cfg, denoiser)
    state = build.build_state(cfg, denoiser.network, machine.device, machine.precision, loss, timesteps)
    return Parts(denoiser, machine, loss, timesteps, state)


def fitted(trainer: Trainer, state: TrainState, cfg: dict[str, Any], known: int | None) -> Trainer:
    """With micro_batch_size=auto, as many images at once as fit: found once, then `known` to every resume."""
    if cfg["training"]["micro_batch_size"] != "auto":
        return trainer
    size = known or largest_micro_batch(trainer, state)
    return replace(trainer, settings=replace(trainer.settings, micro_batch_size=size))
