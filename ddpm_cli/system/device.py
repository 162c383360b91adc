"""The device a run works on: which, how many, whether its network is compiled, and whether its bits repeat."""

import os
import shutil
from importlib.util import find_spec

import torch

from ddpm_cli.errors import UserError

_MOST_ON_CPU = 8  # ranks that may share fewer cores, to try what several do

# Floating-point operations of a run below which compiling (a minute or two) is not earned back: some three minutes of
# uncompiled work on a large GPU, more on a smaller one. A fixed number and no timing, so that a command always does
# the same.
WORTH_COMPILING = 2e16


def choose_device(name: str) -> torch.device:
    """`auto` is the first CUDA GPU, else Apple's, else the CPU; UserError if the named one is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UserError(f"device={name} is not there: {count} CUDA device(s) found; use device=auto or device=cpu")
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps is not there; use device=auto or device=cpu")
    return device


def choose_devices(wanted: int | str, name: str, most: int) -> int:
    """How many ranks work: `auto` is all CUDA GPUs, or 1; UserError for more than there are. CPU ranks share its cores.

    name: what `device` says. most: ranks that have something to do.
    """
    device = choose_device(name)
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    if wanted == "auto":
        return 1 if ":" in name else min(there, most)
    count = int(wanted)
    if count == 1:
        return 1
    if ":" in name or device.type not in ("cuda", "cpu"):
        raise UserError(f"devices={count}: device={device} is one device; use device=cuda, device=cpu or devices=1")
    if device.type == "cuda" and count > there:
        raise UserError(f"devices={count}: only {there} CUDA device(s) found; use devices=1 or devices=auto")
    cores = os.cpu_count() or 1
    if device.type == "cpu" and count > max(cores, _MOST_ON_CPU):  # each takes memory of its own, and a core
        raise UserError(f"devices={count}: this machine has {cores} CPU core(s); use devices={cores} or fewer")
    return count


def choose_compile(name: str | bool, device: torch.device, flops: float) -> bool:
    """`auto` compiles where it can and where it is earned back, on a CUDA GPU: on a CPU it gains nothing.

    flops: floating-point operations of all that is to be done.
    """
    if name != "auto":
        return str(name).lower() == "true"
    return device.type == "cuda" and flops >= WORTH_COMPILING and can_compile(device)


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs for a CUDA GPU: Triton, a C compiler, and a GPU that Triton knows."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    return bool(compiler) and find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (7, 0)


def choose_determinism(deterministic: bool) -> None:
    """With `deterministic`, only algorithms that give the same bits every time; one that has no such is an error."""
    if deterministic:
        # Read when CUDA, NCCL and the compiler start. NCCL otherwise chooses the order of its sums by itself from three
        # GPUs on, and by what the network card can do.
        nccl = {"NCCL_ALGO": "Ring", "NCCL_PROTO": "Simple", "NCCL_NVLS_ENABLE": "0", "NCCL_COLLNET_ENABLE": "0"}
        others = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TORCHINDUCTOR_DETERMINISTIC": "1"}
        for name, value in (nccl | others).items():
            os.environ.setdefault(name, value)
        # Costs time, and nothing here reads such memory.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic  # shapes hardly change, so that each is timed once
