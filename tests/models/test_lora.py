"""LoRA: where adapters go, that they begin as nothing, and that merged they are what they were apart."""

import copy

import pytest
import torch
from projection import composed
from torch import nn

from ddpm_cli.build.model import build_denoiser
from ddpm_cli.models.blocks import Upsample
from ddpm_cli.models.lora import LoRA, is_adapter

T = torch.tensor([3.0, 700.0])
SMALL = ("dataset.image_size=8", "model.channels=16")
NETWORKS = {
    "unet": ("model.channel_mult=[1,2]", "model.attention_levels=[1]"),
    "ddpmpp": ("model=ddpmpp_cifar10", "model.channel_mult=[1,2]", "model.blocks_per_level=1"),
    "convolutions": ("model.channel_mult=[1,2]",),
    "dit": ("model=dit_small", "model.depth=2", "model.heads=2"),
}


def network_of(name):
    """With no weight zero, as some begin."""
    torch.manual_seed(0)
    network = build_denoiser(composed("train", *NETWORKS[name], *SMALL)).network.eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return network


def spread(network):
    """Adapters that are no longer nothing."""
    with torch.no_grad():
        for name, p in network.named_parameters():
            if is_adapter(name):
                p.normal_(std=0.3)


def output(network):
    torch.manual_seed(1)
    with torch.no_grad():
        return network(torch.randn(2, 1, 8, 8).to(next(network.parameters())), T, {"labels": torch.tensor([1, 10])})


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_begins_as_it_was_and_merged_weights_compute_what_adapters_did(name):
    network = network_of(name)
    lora = LoRA(rank=4, alpha=6.0, targets=["conv1", "conv2", "conv"] if name == "convolutions" else None)
    plain, before = copy.deepcopy(network), output(network)
    lora.attach(network)
    # To the last bit on most processors; some round by where a matrix lies in memory.
    torch.testing.assert_close(output(network), before, rtol=0, atol=5e-7)
    spread(network)
    tuned = output(copy.deepcopy(network))  # as the averages are copied
    torch.testing.assert_close(output(network), tuned, rtol=0, atol=5e-7)
    assert (tuned - before).abs().max() > 1e-2
    plain.load_state_dict(lora.merged(network.state_dict()))
    torch.testing.assert_close(output(plain), tuned, rtol=0, atol=5e-6)  # float32's rounding through all layers
    network.double()
    plain.double().load_state_dict(lora.merged(network.state_dict()))
    torch.testing.assert_close(output(plain), output(network), rtol=0, atol=1e-12)


def test_a_layer_computes_equation_3_for_tokens_and_for_pixels():
    torch.manual_seed(0)
    convs = {"one": nn.Conv2d(5, 3, 1), "wide": nn.Conv2d(5, 3, 3, stride=2, padding=1), "sound": nn.Conv1d(5, 3, 3)}
    layers = nn.ModuleDict({"linear": nn.Linear(5, 3), **convs, "still": nn.Linear(5, 3)}).double()
    plain = copy.deepcopy(layers)
    LoRA(rank=2, alpha=3.0, targets=["linear", *convs]).attach(layers)
    spread(layers)
    for name, shape in {"linear": (4, 6, 5), "one": (4, 5, 6, 6), "wide": (4, 5, 6, 6), "sound": (4, 5, 9)}.items():
        layer, x = layers[name], torch.randn(shape, dtype=torch.float64)
        added = 3.0 / 2 * layer.lora_B @ layer.lora_A
        plain[name].weight.data += added.view_as(layer.weight)
        torch.testing.assert_close(layer(x), plain[name](x))
    assert "still.lora_A" not in layers.state_dict()


def test_a_convolution_that_is_folded_into_another_is_not_while_it_is_adapted():
    torch.manual_seed(0)
    lora, up, x = LoRA(rank=2, alpha=2.0, targets=["conv"]), Upsample(4), torch.randn(1, 4, 8, 8)
    plain = copy.deepcopy(up)
    lora.attach(up)
    spread(up)
    plain.load_state_dict(lora.merged(up.state_dict()))
    torch.testing.assert_close(up(x, x), plain(x, x), rtol=0, atol=1e-5)


def test_adapters_alone_and_the_class_embedding_are_trained():
    network = network_of("unet")
    LoRA(rank=4, alpha=4.0).attach(network)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    layers = {name.rpartition(".")[0] for name in trained if is_adapter(name)}
    assert trained == {f"{layer}.{leaf}" for layer in layers for leaf in ("lora_A", "lora_B")} | {
        "class_embedding.weight"
    }
    attentions = [name for name, _ in network.named_modules() if name.split(".")[-2:-1] == ["attentions"]]
    ends = ("to_q", "to_k", "to_v", "to_out.0")
    assert layers == {
        f"{name}.{end}" for name in attentions for end in ends if f"{name}.to_q.weight" in network.state_dict()
    }


def test_targets_and_what_is_trained_beside_them_are_named_by_parts_of_names():
    network = network_of("unet")
    LoRA(rank=2, alpha=2.0, targets=["mid_block", "time_emb_proj"], also=["conv_out", "down_blocks.0"]).attach(network)
    for name, p in network.named_parameters():
        adapted = is_adapter(name) and ("mid_block" in name or "time_emb_proj" in name)
        assert p.requires_grad == (adapted or name.startswith(("conv_out.", "down_blocks.0."))), name
        assert is_adapter(name) <= adapted


@pytest.mark.parametrize(
    ("model", "knobs", "told"),
    [
        (
            "unet",
            {"targets": ["to_q", "to_x"]},
            r"adapter.targets: .* no layer in to_x; it has .*to_q, .*linear_1",
        ),
        ("unet", {"targets": ["norm1"]}, "no layer in norm1"),
        ("unet", {"also": ["conv_up"]}, r"adapter.also: the network has no weights in conv_up; it has conv_in, "),
        ("cnn", {}, r"no attention; type layers that it has: adapter.targets=\[linear_1,linear_2,down,emb_proj\]$"),
    ],
)
def test_what_a_network_does_not_have_is_refused(model, knobs, told):
    networks = {**NETWORKS, "cnn": ("model=cnn",)}
    size = SMALL if model != "cnn" else SMALL[:1]
    network = build_denoiser(composed("train", *networks[model], *size)).network
    with pytest.raises(ValueError, match=told):
        LoRA(rank=2, alpha=2.0, **knobs).attach(network)


def test_adapters_that_do_not_fit_are_refused():
    lora, weights = LoRA(rank=2, alpha=2.0), {"q.weight": torch.ones(3, 4), "q.lora_A": torch.ones(2, 4)}
    with pytest.raises(ValueError, match="q lacks one of weight, lora_A and lora_B"):
        lora.merged(weights)
    with pytest.raises(ValueError, match=r"q has adapters of \(2, 4\) and \(3, 1\) for \(3, 4\)"):
        lora.merged({**weights, "q.lora_B": torch.ones(3, 1)})
    assert lora.merged({"q.weight": weights["q.weight"]}) == {"q.weight": weights["q.weight"]}
