"""Every preset of configs/model builds, has the size its paper or its comment states, runs and learns."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

CONFIGS = Path(__file__).parents[2] / "configs" / "model"
SIZES = {  # image, output channels, classes, parameters, GFLOP an image forward
    "cnn": ((1, 28, 28), 1, 10, 283_457, 0.016),
    "unet_digits": ((1, 8, 8), 1, 10, 756_417, 0.033),
    "unet_small": ((3, 32, 32), 3, 10, 1_187_372, 0.21),
    "dit_small": ((3, 32, 32), 3, 10, 1_877_296, 0.17),
    "unet_sound": ((2, 128, 48), 2, 10, 4_786_464, 0.82),
    "unet1d": ((1, 6016), 1, 10, 6_207_624, 1.63),
    "unet_cifar10": ((3, 32, 32), 3, 10, 35_746_307, 12.5),
    "dit_cifar10": ((3, 32, 32), 3, 10, 32_475_660, 12.2),
    "unet_iddpm": ((3, 32, 32), 6, 10, 52_546_438, 17),
    "ddpmpp_cifar10": ((3, 32, 32), 3, 10, 55_733_891, 42.5),
    "unet_adm64": ((3, 64, 64), 6, 1000, 295_904_454, 220),
    "edm2_digits": ((1, 8, 8), 1, 10, 722_475, 0.038),
    "edm2_cifar10": ((3, 32, 32), 3, 10, 54_610_466, 44.2),
}


def test_every_preset_is_listed_here():
    """auto has the sizes of test_network_size.py, and an autoencoder, which denoises nothing, is tested by itself."""
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*SIZES, "auto", "autoencoder_kl"}


@pytest.mark.parametrize("name", SIZES)
def test_preset_has_its_size(name, preset):
    (channels, *size), out_channels, num_classes, parameters, gflop = SIZES[name]
    with torch.device("meta"):
        network = preset(name, channels, out_channels, num_classes)
        network.check_input((channels, *size))
        with FlopCounterMode(display=False) as counter:
            output = network(torch.randn(1, channels, *size), torch.zeros(1), None)
    assert output.shape == (1, out_channels, *size)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert counter.get_total_flops() <= gflop * 1e9


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("unet_digits", (1, 8, 8)),
        ("unet_small", (1, 28, 28)),
        ("unet_small", (3, 32, 24)),
        ("unet_cifar10", (3, 32, 32)),
        ("unet_sound", (2, 128, 48)),
        ("unet1d", (1, 512)),
        ("cnn", (1, 8, 8)),
        ("cnn", (3, 7, 13)),
        ("dit_small", (1, 28, 28)),
        ("dit_small", (3, 16, 32)),
        ("edm2_digits", (1, 8, 12)),
    ],
)
@pytest.mark.parametrize("out_factor", [1, 2])
def test_preset_runs_forward_and_backward(name, shape, out_factor, preset):
    torch.manual_seed(0)
    network = preset(name, shape[0], out_factor * shape[0])
    network.check_input(shape)
    cond = {"labels": torch.tensor([3, network.null_label])}
    output = network(torch.randn(2, *shape), torch.tensor([0.0, 999.0]), cond)
    assert output.shape == (2, out_factor * shape[0], *shape[1:])
    (output - 1).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", ["unet_digits", "dit_small", "cnn"])
def test_preset_learns_to_reproduce_a_batch(name, preset):
    torch.manual_seed(0)
    network = preset(name, 1)
    x, time = torch.randn(8, 1, 8, 8), torch.rand(8) * 999
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = (network(x, time, {"labels": torch.arange(8)}) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


SHRUNK = {
    "unet_small": {"channels": 8},
    "unet_adm64": {"channels": 8, "channel_mult": [1, 2], "attention_levels": [1], "head_channels": 8},
    "ddpmpp_cifar10": {"channels": 8, "channel_mult": [1, 2], "blocks_per_level": 1},
    "dit_small": {"channels": 16, "depth": 1},
    "edm2_cifar10": {"channels": 16, "channel_mult": [1, 2], "blocks_per_level": 1, "head_channels": 16},
    "cnn": {"channels": [8]},
}


@pytest.mark.parametrize("name", SHRUNK)
def test_network_is_one_graph_without_breaks(name, preset, awake):
    network = awake(preset(name, 3, class_conditional=True, **SHRUNK[name]))
    x, time, cond = torch.randn(2, 3, 16, 16), torch.rand(2), {"labels": torch.tensor([3, 10])}
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, time, cond), network(x, time, cond))


@pytest.mark.parametrize("name", SHRUNK)
def test_network_runs_in_bf16(name, preset, awake):
    network = awake(preset(name, 3, class_conditional=True, **SHRUNK[name]))
    x, time, cond = torch.randn(2, 3, 16, 16), torch.rand(2), {"labels": torch.tensor([3, 10])}
    expected = network(x, time, cond).detach()
    with torch.autocast("cpu", torch.bfloat16):
        output = network(x, time, cond)
    assert (output.float() - expected).std() < 0.05 * expected.std()
    output.float().square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    assert network.bfloat16()(x.bfloat16(), time, cond).dtype == torch.bfloat16
