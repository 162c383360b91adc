"""The machine a run finds itself on: device, number format, compilation, signals."""

import os
import signal
import time
from types import FrameType

import torch

from ddpm_cli.ending import ending_signals, exit_code_of, is_impatience
from ddpm_cli.errors import UserError

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Below this the network is bound by memory, where bf16 gains nothing on a CPU (GFLOP a forward pass of one image).
_BF16_CPU_MIN_GFLOP = 0.1


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


def choose_devices(wanted: int | str, name: str, batch_size: int) -> int:
    """How many ranks work: `auto` is all CUDA GPUs, or 1; UserError for more than there are. CPU ranks share its cores.

    name: what `device` says.
    """
    device = choose_device(name)
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    if wanted == "auto":
        return 1 if ":" in name else min(there, batch_size)
    count = int(wanted)
    if count == 1:
        return 1
    if ":" in name or device.type not in ("cuda", "cpu"):
        raise UserError(f"devices={count}: device={device} is one device; use device=cuda, device=cpu or devices=1")
    if device.type == "cuda" and count > there:
        raise UserError(f"devices={count}: only {there} CUDA device(s) found; use devices=1 or devices=auto")
    return count


def is_out_of_memory(error: BaseException) -> bool:
    """torch's own error of a GPU, and what its CPU allocator raises in its stead."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def choose_precision(name: str, device: torch.device, gflop_per_image: float) -> str:
    """`auto` is what is fast on this device and accurate enough: a fixed rule, not a timing, so that a command always
    does the same.

    CUDA: bf16 from compute capability 8, else fp16. CPU: bf16 where the processor multiplies in it and the network is
    large enough to gain. Elsewhere fp32.
    """
    if name != "auto":
        if name == "fp16" and device.type == "cpu":
            raise UserError("precision=fp16 is for GPUs; use precision=bf16 or precision=fp32 on the CPU")
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if device.type == "cpu" and gflop_per_image >= _BF16_CPU_MIN_GFLOP and cpu_multiplies_bf16():
        return "bf16"
    return "fp32"


def cpu_multiplies_bf16() -> bool:
    """Whether this processor has bf16 matrix instructions, without which bf16 is slower than fp32."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def choose_compile(name: str | bool, device: torch.device) -> bool:
    """`auto` compiles on CUDA alone: on a CPU it costs minutes and gains nothing."""
    return device.type == "cuda" if name == "auto" else str(name).lower() == "true"


def choose_determinism(deterministic: bool) -> None:
    """With `deterministic`, only algorithms that give the same bits every time; one that has no such is an error."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False


class Signals:
    """Turns SIGINT, SIGTERM, SIGUSR1 and SIGHUP into a flag to be looked at between steps; a second signal ends the
    process at once (see is_impatience)."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        for number in ending_signals():
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._since = number, time.monotonic()
        elif is_impatience(number, time.monotonic() - self._since):
            os._exit(self.exit_code)

    def __bool__(self) -> bool:
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 129 after SIGHUP, else 143."""
        return exit_code_of(self.received or signal.SIGTERM)
