"""DDPM++ as EDM trains it."""

import math

import pytest
import torch

from ddpm_cli.models.ddpmpp import DDPMpp

TINY = {
    "in_channels": 3,
    "out_channels": 3,
    "num_classes": 10,
    "class_conditional": True,
    "channels": 16,
    "channel_mult": [2, 2],
    "blocks_per_level": 2,
    "attention_levels": [1],
    "dropout": 0.0,
    "augment_dim": 9,
}


@torch.no_grad()
def test_every_condition_changes_the_output_and_none_is_zero(awake):
    network = awake(DDPMpp(**TINY))
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([-1.5, 1.0])
    plain = network(x, time, None)
    null = {"labels": torch.tensor([10, 10]), "augment": torch.zeros(2, 9)}
    torch.testing.assert_close(network(x, time, null), plain)
    torch.testing.assert_close(network(x, time, {"embedding": torch.zeros(2, 16)}), plain)
    for cond in (null | {"labels": torch.tensor([0, 9])}, null | {"augment": torch.ones(2, 9)}):
        assert ((network(x, time, cond) - plain).abs().amax(dim=(1, 2, 3)) > 1e-3).all()
    assert not torch.allclose(network(x, time + 0.5, None), plain, atol=1e-3)


@torch.no_grad()
def test_untrained_blocks_keep_half_of_the_variance():
    """Their last layers start near zero, so a block is its input times the root of 1/2."""
    network = DDPMpp(**TINY).eval()
    x, emb = torch.randn(2, 32, 8, 8), torch.randn(2, 64)
    block, attention = network.down_blocks[1].resnets[0], network.down_blocks[1].attentions[0]
    torch.testing.assert_close(block(x, emb), x * math.sqrt(0.5), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(attention(x), x * math.sqrt(0.5), rtol=1e-3, atol=1e-3)


def test_attention_follows_the_last_block_only_on_the_way_up():
    network = DDPMpp(**TINY)
    assert [len(list(a.parameters())) > 0 for a in network.up_blocks[0].attentions] == [False, False, True]
    assert all(len(list(a.parameters())) > 0 for a in network.down_blocks[1].attentions)


def test_settings_are_checked_as_those_of_the_unet():
    with pytest.raises(ValueError, match=r"model.attention_levels must lie in 0..1"):
        DDPMpp(**(TINY | {"attention_levels": [3]}))
