"""Every preset of configs/model builds, runs and learns on the images it is made for."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

CONFIGS = Path(__file__).parents[2] / "configs" / "model"


def build(name, channels=3, out_channels=None, **changes):
    dataset = {"channels": channels, "num_classes": 10}
    config = OmegaConf.create({"dataset": dataset, "model": OmegaConf.load(CONFIGS / f"{name}.yaml")})
    return instantiate(config.model, out_channels=out_channels or channels, **changes)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("unet_digits", (1, 8, 8)),
        ("unet_small", (1, 28, 28)),
        ("unet_small", (3, 32, 32)),
        ("unet_small", (3, 16, 16)),
        ("unet_small", (3, 32, 24)),
        ("unet_cifar10", (3, 32, 32)),
        ("cnn", (1, 8, 8)),
        ("cnn", (1, 28, 28)),
        ("cnn", (3, 7, 13)),
    ],
)
@pytest.mark.parametrize("out_factor", [1, 2])
def test_preset_runs_forward_and_backward(name, shape, out_factor):
    torch.manual_seed(0)
    network = build(name, shape[0], out_factor * shape[0])
    network.check_input(shape)
    output = network(
        torch.randn(2, *shape), torch.tensor([0.0, 999.0]), {"labels": torch.tensor([3, network.null_label])}
    )
    assert output.shape == (2, out_factor * shape[0], *shape[1:])
    (output - 1).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "parameters", "gflop"),
    [
        ("unet_digits", (1, 8, 8), 1.0e6, 0.034),
        ("unet_small", (3, 32, 32), 1.5e6, 0.25),
        ("unet_cifar10", (3, 32, 32), 35_746_307, 12.5),
        ("cnn", (1, 28, 28), 0.3e6, 0.016),
    ],
)
def test_preset_keeps_to_its_budget(name, shape, parameters, gflop):
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = build(name, shape[0])
        with FlopCounterMode(display=False) as counter:
            network(torch.randn(1, *shape), torch.zeros(1), None)
    assert sum(p.numel() for p in network.parameters()) <= parameters
    assert counter.get_total_flops() <= gflop * 1e9


def test_preset_learns_to_reproduce_a_batch():
    torch.manual_seed(0)
    network = build("unet_digits", 1)
    x, time = torch.randn(8, 1, 8, 8), torch.rand(8) * 999
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(40):
        loss = (network(x, time, {"labels": torch.arange(8)}) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
