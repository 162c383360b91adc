"""What `auto` chooses, with the GPU that this machine may not have replaced by what it would say of itself."""

import os

import pytest
import torch

from ddpm_cli.errors import UserError
from ddpm_cli.system import device as devices
from ddpm_cli.system.device import WORTH_COMPILING, choose_compile, choose_determinism
from ddpm_cli.system.precision import choose_precision, set_float32

GPU = torch.device("cuda", 0)
LONG = 2 * WORTH_COMPILING


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of compute capability 9.0, Triton and a C compiler."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(devices, "find_spec", lambda name: object())
    monkeypatch.setenv("CC", "cc")
    return monkeypatch


def test_a_long_run_on_a_gpu_is_compiled_and_no_other(gpu):
    assert choose_compile("auto", GPU, LONG) is True
    assert choose_compile("auto", GPU, 800 * 128 * 0.2e9) is False  # the default digits run: seconds
    assert choose_compile("auto", torch.device("cpu"), LONG) is False


def test_what_is_typed_is_done(gpu):
    assert choose_compile(True, torch.device("cpu"), 0) is True and choose_compile(False, GPU, LONG) is False


def test_nothing_is_compiled_without_triton_a_compiler_or_a_gpu_that_triton_knows(gpu):
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert choose_compile("auto", GPU, LONG) is False
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert choose_compile("auto", GPU, LONG) is True
    gpu.setattr(devices, "find_spec", lambda name: None)
    assert choose_compile("auto", GPU, LONG) is False
    gpu.setattr(devices, "find_spec", lambda name: object())
    gpu.delenv("CC")
    gpu.setattr(devices.shutil, "which", lambda name: None)
    assert choose_compile("auto", GPU, LONG) is False


def test_fp32_is_fp32_and_tf32_is_asked_for():
    set_float32("tf32")
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    set_float32("fp32")
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    with pytest.raises(UserError, match="precision=tf32 is for CUDA GPUs"):
        choose_precision("tf32", torch.device("cpu"), 1.0)


def test_deterministic_pins_what_nccl_and_the_compiler_would_choose(monkeypatch):
    monkeypatch.setenv("NCCL_ALGO", "Tree")  # a user's own choice stays
    for name in ("NCCL_PROTO", "NCCL_NVLS_ENABLE", "NCCL_COLLNET_ENABLE", "TORCHINDUCTOR_DETERMINISTIC"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    try:
        choose_determinism(True)
        assert os.environ["NCCL_PROTO"] == "Simple" and os.environ["NCCL_ALGO"] == "Tree"
        assert os.environ["TORCHINDUCTOR_DETERMINISTIC"] == "1" and not torch.backends.cudnn.benchmark
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        choose_determinism(False)
    assert torch.backends.cudnn.benchmark and not torch.are_deterministic_algorithms_enabled()
