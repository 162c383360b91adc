"""The diffusion transformer."""

import pytest
import torch

from ddpm_cli.models.conditioning import time_features
from ddpm_cli.models.dit import DiT, positions

TINY = {
    "in_channels": 3,
    "out_channels": 6,
    "num_classes": 10,
    "class_conditional": True,
    "channels": 32,
    "depth": 2,
    "heads": 4,
    "patch_size": 2,
    "mlp_ratio": 4,
}


def dit(**changes) -> DiT:
    return DiT(**(TINY | changes))


def as_diffusers(network: DiT) -> dict[str, torch.Tensor]:
    """The weights named and laid out as in DiTTransformer2DModel, which embeds the condition in every block."""
    weights, patch = network.state_dict(), network.patch_size
    shared = {
        "timestep_embedder.linear_1.weight": weights["time_embedding.linear_1.weight"].roll(128, dims=1),  # cos first
        "timestep_embedder.linear_1.bias": weights["time_embedding.linear_1.bias"],
        "timestep_embedder.linear_2.weight": weights["time_embedding.linear_2.weight"],
        "timestep_embedder.linear_2.bias": weights["time_embedding.linear_2.bias"],
        "class_embedder.embedding_table.weight": weights["class_embedding.weight"],
    }
    names = {"modulation": "norm1.linear", "proj": "attn1.to_out.0", "mlp_1": "ff.net.0.proj", "mlp_2": "ff.net.2"}
    out = {}
    for kind in ("weight", "bias"):
        out[f"proj_out_1.{kind}"] = weights[f"modulation.{kind}"]
        # rows ordered (channel, y, x) here, (y, x, channel) there
        rows = weights[f"patch_out.{kind}"].unflatten(0, (-1, patch**2)).transpose(0, 1).flatten(0, 1)
        out[f"proj_out_2.{kind}"] = rows
        for i in range(len(network.blocks)):
            there = f"transformer_blocks.{i}."
            out |= {f"{there}norm1.emb.{key}": value for key, value in shared.items()}
            out |= {f"{there}{b}.{kind}": weights[f"blocks.{i}.{a}.{kind}"] for a, b in names.items()}
            for part, rows in zip("qkv", weights[f"blocks.{i}.qkv.{kind}"].chunk(3), strict=True):
                out[f"{there}attn1.to_{part}.{kind}"] = rows
    out["pos_embed.proj.weight"] = weights["patch_in.weight"].unflatten(1, (-1, patch, patch))
    out["pos_embed.proj.bias"] = weights["patch_in.bias"]
    out["pos_embed.pos_embed"] = positions(4, 4, network.channels, torch.device("cpu"))[None]
    return out


@torch.no_grad()
def test_agrees_with_diffusers(awake):
    diffusers = pytest.importorskip("diffusers")
    network = awake(dit())
    reference = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_eps=1e-6,
    ).eval()
    missing = reference.load_state_dict(as_diffusers(network), strict=False)
    assert not missing.missing_keys and set(missing.unexpected_keys) <= {"pos_embed.pos_embed"}
    reference.pos_embed.pos_embed = as_diffusers(network)["pos_embed.pos_embed"]
    x, time, labels = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 777.0]), torch.tensor([4, 10])
    expected = reference(x, timestep=time, class_labels=labels).sample
    torch.testing.assert_close(network(x, time, {"labels": labels}), expected, rtol=1e-5, atol=1e-5)


def test_output_is_zero_and_every_block_the_identity_before_training():
    network = dit()
    tokens = torch.randn(2, 16, 32)
    assert torch.equal(network.blocks[0](tokens, torch.randn(2, 32)), tokens)
    assert not network(torch.randn(2, 3, 8, 8), torch.rand(2), None).any()


def test_positions_tell_rows_from_columns():
    where = positions(3, 5, 16, torch.device("cpu"))
    line = time_features(torch.arange(5), 8)
    torch.testing.assert_close(where[2 * 5 + 4], torch.cat([line[4], line[2]]))
    assert torch.cdist(where, where).add(torch.eye(15)).min() > 1e-2


@torch.no_grad()
def test_non_square_images_and_every_condition_count(awake):
    network = awake(dit())
    x, time = torch.randn(2, 3, 6, 10), torch.tensor([5.0, 500.0])
    null = network(x, time, None)
    assert null.shape == (2, 6, 6, 10)
    torch.testing.assert_close(network(x, time, {"labels": torch.tensor([10, 10])}), null)
    labels = torch.tensor([1, 2])
    output = network(x, time, {"labels": labels})
    assert not torch.allclose(output, null, atol=1e-3)
    torch.testing.assert_close(network(x, time, {"embedding": network.embed_labels(labels)}), output)
    assert not torch.allclose(network(x, time + 50, None), null, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 30}, "model.channels must be a multiple of 4"),
        ({"heads": 5}, "model.heads must divide model.channels=32, got 5"),
        ({"depth": 0}, "model.depth must be at least 1, got 0"),
        ({"depth": 2, "routing": 0.5}, "passes by the middle of at least 3 blocks, got 2"),
        ({"class_conditional": True, "num_classes": None}, "model.class_conditional=true"),
    ],
)
def test_settings_that_make_no_network_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dit(**changes)


def test_size_that_patches_do_not_fill_is_refused():
    with pytest.raises(ValueError, match=r"model.patch_size must divide .* got 2 for 8x7"):
        dit().check_input((3, 8, 7))


def test_routing_is_of_training_alone(awake):
    whole = awake(dit(depth=4)).eval()
    routed = dit(depth=4, routing=0.5).eval()
    routed.load_state_dict(whole.state_dict())
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([5.0, 500.0])
    assert routed(x, time, None).equal(whole(x, time, None))
    assert not routed.train()(x, time, None).equal(whole(x, time, None))


@pytest.mark.parametrize(("depth", "ends"), [(3, 1), (6, 1), (12, 2)])
def test_other_tokens_of_each_image_pass_by_the_middle_blocks(depth, ends):
    network, seen = dit(depth=depth, routing=0.75).train(), []
    for number, block in enumerate(network.blocks):
        middle = ends <= number < depth - ends
        block.compute = lambda x, c, middle=middle: seen.append(x.shape[1]) or x + middle
    tokens = torch.randn(8, 16, 32)
    torch.manual_seed(0)
    added = network._through_blocks(tokens, torch.zeros(8, 32)) - tokens
    assert seen == [16] * ends + [4] * (depth - 2 * ends) + [16] * ends
    added = added.round()
    assert added.eq(added[..., :1]).all() and set(added[..., 0].unique().tolist()) == {0, depth - 2 * ends}
    assert added[..., 0].count_nonzero(dim=1).tolist() == [4] * 8 and len(added[..., 0].unique(dim=0)) > 4
    torch.manual_seed(0)
    assert (network._through_blocks(tokens, torch.zeros(8, 32)) - tokens).round().equal(added)


def test_gradients_reach_all_tokens_and_all_blocks_under_routing(awake):
    network = awake(dit(depth=4, routing=0.5)).train()
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    network(x, torch.tensor([5.0, 500.0]), None).square().sum().backward()
    assert (x.grad != 0).all() and all(p.grad is not None for p in network.blocks.parameters())
