"""A training step and a sampling step on tensors that say they are on a GPU and hold nothing: run as its own process.

Prints, as JSON, how many kernels each would launch (of training without the backward pass) and what in it would make
the host wait for the GPU. Argument `wait`: with such a wait put into both.
"""

import json
import sys
from collections import Counter

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddpm_cli.build.machine import Machine, place
from ddpm_cli.build.trainer import build_parts, build_state, build_train_step
from ddpm_cli.config.compose import Composer, plain
from ddpm_cli.data.loading.batches import Batches
from ddpm_cli.data.store import Store
from ddpm_cli.diffusion.denoiser import clipped
from ddpm_cli.sampling.generate import ImageNoise, walk
from ddpm_cli.training import random_numbers
from ddpm_cli.training.meter import Meter
from ddpm_cli.training.nonfinite import NonFiniteMonitor

CUDA, BATCH = torch.device("cuda", 0), 128
RECIPE = "dataset=cifar10 training.batch_size=128 device=cpu precision=fp32 compile=false".split()
ANSWERS = {"_local_scalar_dense": 1.0, "item": 1.0, "equal": True, "is_nonzero": True}  # to what would have to wait
ALLOCATIONS = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}


class Launches(TorchDispatchMode):
    """Counts what would be a kernel, and notes what would be a wait."""

    def __init__(self):
        super().__init__()
        self.kernels, self.waits = Counter(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        before = any(on_gpu(leaf) for leaf in tree_leaves((args, kwargs)))
        if before and name in ANSWERS:
            self.waits.append(name)
            return ANSWERS[name]
        out = func(*args, **kwargs)
        after = any(on_gpu(leaf) for leaf in tree_leaves(out))
        if before and not after and name in ("_to_copy", "copy_"):
            self.waits.append(f"{name} to the host")
        view = func.is_view or name in ALLOCATIONS or name in ("detach", "device")
        if (before or after) and not view:
            self.kernels[name] += 1
        return out


def on_gpu(leaf):
    return isinstance(leaf, torch.Tensor) and leaf.device.type == "cuda"


def replacing(self, *args, memory_format=torch.preserve_format, **kwargs):
    """nn.Module.to, with new parameters: those of a module cannot be changed into ones that hold nothing."""
    for module in self.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                layout = memory_format if parameter.ndim == 4 else torch.preserve_format
                moved = parameter.detach().to(*args, memory_format=layout, **kwargs)
                module._parameters[name] = nn.Parameter(moved)
    return self


def faked(network, mode):
    """The network with parameters that hold nothing."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(mode.from_tensor(parameter.detach()))
    return network


def counted(work, work_on, wait):
    with Launches():
        work()  # what is made or computed once
    with Launches() as launches:
        work()
        if wait:
            float(work_on.sum())
    return {"kernels": sum(launches.kernels.values()), "waits": launches.waits, "most": launches.kernels.most_common(8)}


def training_step(parts, cfg, mode, wait):
    parts = type(parts)(**{**vars(parts), "machine": Machine(CUDA, "bf16", False)})
    faked(parts.denoiser.network, mode).to(CUDA).to(memory_format=torch.channels_last)
    parts.denoiser.amp_dtype = torch.bfloat16
    items = torch.zeros(256, 3, 32, 32, dtype=torch.uint8, device=CUDA)
    store = Store(items, None, (), "fake", "0" * 16)
    step, state = build_train_step(cfg, parts, store), build_state(cfg, parts)
    meter, monitor = Meter(CUDA), NonFiniteMonitor(state)

    def backward(loss):
        """Autograd's engine needs a driver; it runs derivatives of what was called, and nothing of this project's."""
        for parameter in parts.denoiser.network.parameters():
            parameter.grad = torch.zeros_like(parameter)

    torch.Tensor.backward = backward

    def work():
        metrics = step(state)
        meter.add(metrics)
        monitor.add(metrics)

    return counted(work, items.float(), wait)


def sampling_call(parts, mode, wait):
    """The sampler goes its way outside the mode, in which its coefficients would hold nothing either; so the denoiser's
    are computed beforehand, in three steps without a network."""
    denoiser, network = parts.denoiser, parts.denoiser.call_network
    noise = ImageNoise(0, range(BATCH), (3, 32, 32), CUDA)

    def steps(x, denoise):
        ImageNoise.__call__ = lambda self, i: x.clone()
        return walk(denoise, parts.sampler, denoiser.schedule, denoiser.variance, noise)

    def denoise(x, t, cond=None):
        with mode:
            return clipped(denoiser)(x, t, cond)

    denoiser.call_network = lambda x, time, cond: x
    real = steps(torch.zeros(1, 3, 32, 32), clipped(denoiser))
    for _ in range(3):
        next(real)
    denoiser.call_network = network
    with mode:
        faked(denoiser.network, mode).eval()
        place(denoiser, Machine(CUDA, "bf16", False))
        x = torch.zeros(BATCH, 3, 32, 32, device=CUDA)
    with torch.no_grad():
        fakes = steps(x, denoise)
        return counted(lambda: next(fakes), x, wait)


def main():
    wait = "wait" in sys.argv
    with Composer.opened("train") as composer:
        cfg = plain(composer.compose(RECIPE))
    parts, others = build_parts(cfg), build_parts(cfg)
    FakeTensorMode.avoid_device_init = True  # there is no driver, whatever the next line says
    torch.cuda.is_available = torch.cuda.is_bf16_supported = lambda *_: True  # else autocast would switch itself off
    torch.cuda.mem_get_info = lambda *_: (2**36, 2**36)
    nn.Module.to = replacing
    random_numbers.generator = lambda *_: None
    Batches._pinned = lambda self, x: x
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        found = {"train": training_step(parts, cfg, mode, wait)}
    print(json.dumps(found | {"sample": sampling_call(others, mode, wait)}))


if __name__ == "__main__":
    main()
