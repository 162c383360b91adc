"""A denoiser whose weights are converted for drawing, as a GPU is given them; here on the CPU."""

import copy

import pytest
import torch

from ddpm_cli.build.machine import compile_for
from ddpm_cli.build.model import build_denoiser
from ddpm_cli.config.check import configuration
from ddpm_cli.diffusion.guidance import CADS, annealed


def test_a_compiled_network_is_called_for_its_batches_and_no_others(monkeypatch):
    seen = []
    monkeypatch.setattr(
        torch, "compile", lambda network, **how: lambda *args: seen.append(len(args[0])) or network(*args)
    )
    cfg = configuration("train", "dataset=shapes", "dataset.image_size=8", "model=cnn", "model.channels=[16]")
    denoiser = build_denoiser(cfg).eval().requires_grad_(False)
    images = torch.randn(8, 3, 8, 8)
    plain = denoiser(images, torch.tensor(500.0)).x_0
    compile_for(denoiser, 4)
    assert torch.equal(denoiser(images, torch.tensor(500.0)).x_0, plain)  # guidance calls it with two batches in one
    denoiser(images[:3], torch.tensor(500.0))
    denoiser(images[:4], torch.tensor(500.0))
    assert seen == [8, 4]


MODELS = {
    "unet_small": "model.channels=16 model.channel_mult=[1,2] model.blocks_per_level=1",
    "ddpmpp_cifar10": "model.channels=16 model.channel_mult=[1,2] model.blocks_per_level=1 model.attention_levels=[1] "
    "model.class_conditional=true",
    "dit_small": "model.channels=32 model.depth=1 model.heads=2",
    "edm2_digits": "model.channels=16",
    "cnn": "model.channels=[16]",
}


def converted(denoiser):
    other = copy.deepcopy(denoiser)
    other.network.to(torch.bfloat16)
    other.network_dtype = torch.bfloat16
    return other


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("noise", [0.0, 0.2], ids=["labels", "cads"])
def test_weights_in_bf16_draw_what_those_in_fp32_do_and_leave_the_arithmetic_in_fp32(model, noise):
    torch.manual_seed(0)
    cfg = configuration("train", "dataset=shapes", "dataset.image_size=8", f"model={model}", *MODELS[model].split())
    denoiser = build_denoiser(cfg).eval().requires_grad_(False)
    for p in denoiser.network.parameters():  # the last layers start at zero, which would hide everything
        p.normal_(0, 0.1)
    x_t, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 1, 2])
    draws = torch.randn(3, denoiser.network.embed_labels(labels).shape[1]) if noise else None

    def estimate(of):
        call = of
        if noise:
            steps = of.schedule.num_timesteps
            call = annealed(of, CADS(noise=noise, start=0.0), of.network.embed_labels, lambda t, w: draws, steps, 4)
        return call(x_t, torch.tensor(500.0), {"labels": labels}).x_0

    exact, close = estimate(denoiser), estimate(converted(denoiser))
    assert close.dtype == torch.float32
    assert 0 < float((close - exact).norm() / exact.norm()) < 0.05
