"""Where and in which number format a run works, and what a forward pass costs."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ddpm_cli import __version__
from ddpm_cli.build.model import null_label
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.errors import UserError
from ddpm_cli.system.device import choose_compile, choose_device, choose_devices
from ddpm_cli.system.launch_env import Place, place_of
from ddpm_cli.system.precision import PRECISIONS, choose_precision, set_float32


@dataclass(frozen=True)
class Machine:
    """Where and in which number format a run works."""

    device: torch.device
    precision: str
    compile: bool


def environment(machine: Machine, num_ranks: int) -> dict[str, Any]:
    """What a run's figures may depend on beside its settings, for its record."""
    cuda = machine.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(machine.device) if cuda else str(machine.device),
        "devices": num_ranks,
        "precision": machine.precision,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "ddpm_cli": __version__,
    }


def forward_flops(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Floating-point operations of the network's forward pass for one image of `shape`, a multiply-add counting two."""
    with torch.no_grad(), _FlopCounter() as counter:
        forward(network, shape)
    return counter.total


def forward(network: nn.Module, shape: tuple[int, ...], count: int = 1) -> torch.Tensor:
    """A pass of so many items of zeros, of `shape`."""
    device = next(network.parameters()).device
    labels = torch.zeros(count, dtype=torch.long, device=device)
    cond = {"labels": labels} if null_label(network) is not None else None
    return network(torch.zeros(count, *shape, device=device), torch.zeros(count, device=device), cond)


class _FlopCounter(TorchDispatchMode):
    """torch.utils.flop_counter's sum, without the import of torch._dynamo that its own counter begins with: that takes
    seconds, and neither a summary nor ddpm-sample needs it."""

    total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # where torch does not ask for it, all is as right, and slower
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func.overloadpacket)
        if formula is None:  # a compound, as inference mode lets through: of what it is made of
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        self.total += formula(*args, **kwargs, out_val=out) if formula else 0
        return out


def choose_machine(
    cfg: dict[str, Any], flops_per_image: int, calls: float, stored: Mapping[str, Any] = MappingProxyType({})
) -> Machine:
    """calls: how often an image is to go through the network in all, which decides whether compiling is earned back.
    stored: precision and compile that a resumed run was started with, used again unless this invocation names others.
    """
    device = choose_device(cfg["device"])
    names = {"precision": cfg["precision"], "compile": cfg.get("compile", False)}
    wanted = {key: stored.get(key, name) if name == "auto" else name for key, name in names.items()}
    return Machine(
        device,
        choose_precision(wanted["precision"], device, flops_per_image / 1e9),
        choose_compile(wanted["compile"], device, calls * flops_per_image),
    )


def placed(denoiser: Denoiser, cfg: dict[str, Any], shape: tuple[int, ...], calls: float = 0.0) -> Machine:
    """The machine chosen for images of `shape`, with the denoiser moved to it and in its number format for good: it is
    only to be called, not trained. calls: how often an image is to go through the network in all."""
    machine = choose_machine(cfg, forward_flops(denoiser.network, shape), calls)
    place(denoiser, machine)
    return machine


def place(denoiser: Denoiser, machine: Machine) -> None:
    """Moves a denoiser that is only to be called. Its weights are converted once, where autocast would convert them at
    every call."""
    set_float32(machine.precision)
    dtype = PRECISIONS[machine.precision]
    if machine.device.type == "mps":
        denoiser.to(machine.device)
        denoiser.amp_dtype = dtype
        return
    denoiser.network.to(machine.device, dtype)
    denoiser.network_dtype = dtype
    if machine.device.type == "cuda":
        denoiser.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compile_for(denoiser: Denoiser, batch_size: int) -> None:
    """Compiles the network for calls of `batch_size` images (or twice as many, as guidance makes); others, such as the
    last batch's, are made uncompiled, since each size would take as long to compile as the first."""
    network, fast = denoiser.network, torch.compile(denoiser.network, dynamic=False)
    denoiser.call_network = lambda x, time, cond: (network if len(x) % batch_size else fast)(x, time, cond)


def check_place(place: Place | None, cfg: dict[str, Any], typed_keys: Sequence[str]) -> None:
    """UserError for what does not go with ranks that a launcher started; typed_keys: those of this invocation."""
    if place is None:
        return
    if "devices" in typed_keys and cfg["devices"] not in (1, "auto", place.world):
        found = f"{place.launcher} started {place.world} ranks"
        raise UserError(f"devices={cfg['devices']}: {found}; leave devices out")
    if ":" in cfg["device"]:
        raise UserError(f"device={cfg['device']} is one device, and {place.launcher} started {place.world} ranks")


def num_ranks(cfg: dict[str, Any], most: int) -> int:
    """How many ranks share the work: as many as a launcher started, else as many as the configuration asks for; of
    `auto` no more than `most`."""
    place = place_of(os.environ)
    if place is not None:
        return place.world
    return choose_devices(cfg.get("devices", 1), cfg["device"], most)
