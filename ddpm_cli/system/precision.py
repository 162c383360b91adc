"""The number format a network works in."""

import torch

from ddpm_cli.errors import UserError

# The type that the network multiplies in. None is float32, where tf32 lets the GPU round what it multiplies.
PRECISIONS = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Below this the network is bound by memory, where bf16 gains nothing on a CPU (GFLOP a forward pass of one image).
_BF16_CPU_MIN_GFLOP = 0.1


def choose_precision(name: str, device: torch.device, gflop_per_image: float) -> str:
    """`auto` is what is fast on this device and accurate enough: a fixed rule, not a timing, so that a command always
    does the same.

    CUDA: bf16 from compute capability 8, else fp16. CPU: bf16 where the processor multiplies in it and the network is
    large enough to gain. Elsewhere fp32.
    """
    if name != "auto":
        if name == "fp16" and device.type == "cpu":
            raise UserError("precision=fp16 is for GPUs; use precision=bf16 or precision=fp32 on the CPU")
        if name == "tf32" and device.type != "cuda":
            raise UserError("precision=tf32 is for CUDA GPUs; use precision=fp32 or precision=bf16 here")
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if device.type == "cpu" and gflop_per_image >= _BF16_CPU_MIN_GFLOP and cpu_multiplies_bf16():
        return "bf16"
    return "fp32"


def set_float32(precision: str) -> None:
    """Lets CUDA GPUs round float32 factors to tf32's 10 bits where that is the precision, and nowhere else: torch's own
    default does so in convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def cpu_multiplies_bf16() -> bool:
    """Whether this processor has bf16 matrix instructions, without which bf16 is slower than fp32."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
