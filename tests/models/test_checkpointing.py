"""model.checkpointing changes what a backward pass keeps, and nothing else."""

import pytest
import torch
from torch import nn

from ddpm_cli.models.ddpmpp import DDPMpp
from ddpm_cli.models.dit import DiT
from ddpm_cli.models.edm2 import EDM2
from ddpm_cli.models.unet import UNet

COMMON = {"in_channels": 2, "out_channels": 2, "num_classes": 3, "class_conditional": True}
LEVELS = {"channels": 8, "channel_mult": [1, 2], "blocks_per_level": 1, "attention_levels": [1], "dropout": 0.3}
NETWORKS = {
    "unet": lambda **more: UNet(**COMMON, **LEVELS, scale_shift_norm=True, resblock_updown=True, **more),
    "ddpmpp": lambda **more: DDPMpp(**COMMON, **LEVELS, augment_dim=9, **more),
    "edm2": lambda **more: EDM2(**COMMON, **LEVELS, head_channels=8, **more),
    "dit": lambda **more: DiT(**COMMON, channels=16, depth=3, heads=2, patch_size=2, mlp_ratio=2, **more),
}


def built(name, checkpointing):
    torch.manual_seed(0)
    network = NETWORKS[name](checkpointing=checkpointing)
    for parameter in network.parameters():  # last layers start at zero, through which no gradient goes
        nn.init.normal_(parameter, std=0.1)
    return network


def passed(network):
    """The output, the gradients and the bytes that were kept for the backward pass."""
    x, time = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, 9.0, 40.0, 7.0])
    kept = []
    torch.manual_seed(5)  # dropout
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.nbytes), x)[1], lambda x: x):
        out = network(x, time, {"labels": torch.tensor([0, 1, 2, 3])})
    kept = sum(kept)
    out.square().sum().backward()
    after = torch.rand(1)  # the stream of random numbers goes on as it would have
    return [out.detach(), after, *(p.grad for p in network.parameters() if p.grad is not None)], kept


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_the_same_bits_and_less_is_kept(name):
    plain, switched = built(name, False), built(name, True)
    assert plain.state_dict().keys() == switched.state_dict().keys()
    (one, all_kept), (other, some_kept) = passed(plain), passed(switched)
    assert len(one) > 20 and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert some_kept < 0.5 * all_kept, (some_kept, all_kept)
