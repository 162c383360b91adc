"""EDM2's network: what keeps the magnitude, what is forced on the weights, and the whole beside a naive one."""

import math

import pytest
import torch
import torch.nn.functional as F

from ddpm_cli.build.model import build_denoiser
from ddpm_cli.config.check import configuration
from ddpm_cli.models.edm2 import EDM2, CosineAttention, DecoderBlock, EncoderBlock, Options, Residual
from ddpm_cli.models.magnitude import MPClassEmbedding, MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalised

TINY = {
    "in_channels": 3,
    "out_channels": 3,
    "num_classes": 10,
    "class_conditional": True,
    "channels": 16,
    "channel_mult": [1, 2],
    "blocks_per_level": 1,
    "attention_levels": [1],
    "dropout": 0.0,
    "head_channels": 8,
}
OPTIONS = Options(emb_channels=256, dropout=0.0, head_channels=64)


def magnitude(x):
    return float(x.double().square().mean().sqrt())


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def layers():
    x, emb, time = torch.randn(8, 256, 8, 8), torch.randn(4096, 256), torch.randn(4096)
    labels, vector = torch.arange(64), torch.randn(8, 256)
    return {
        "conv 3x3": lambda: MPConv(256, 128, 3)(F.pad(x, (1, 1, 1, 1), "circular"))[:, :, 1:-1, 1:-1],
        "conv 1x1": lambda: MPConv(256, 128, 1)(x),
        "linear": lambda: MPConv(256, 256)(emb),
        "fourier": lambda: MPFourier(256, 1.0)(time),
        "labels": lambda: MPClassEmbedding(63, 256)(labels),
        "silu": lambda: mp_silu(emb),
        "sum": lambda: mp_sum(x, torch.randn_like(x), 0.3),
        "cat": lambda: mp_cat(x, torch.randn(8, 32, 8, 8)),
        "pixel norm": lambda: normalised(7 * x, 1),
        "residual": lambda: Residual(256, 256, OPTIONS)(F.pad(x, (2, 2, 2, 2), "circular"), vector)[:, :, 2:-2, 2:-2],
        "attention": lambda: CosineAttention(256, OPTIONS)(emb[:, :, None, None]),  # the mean over pixels is smaller
        "encoder block": lambda: EncoderBlock(256, 128, OPTIONS)(3 * x, vector),
        "decoder block": lambda: DecoderBlock(128, 128, OPTIONS, kept_channels=128)(x, vector),
    }


@torch.no_grad()
@pytest.mark.parametrize("name", layers())
def test_a_layer_keeps_the_magnitude_of_what_is_standard_normal(name):
    assert magnitude(layers()[name]()) == pytest.approx(1, abs=0.03)


def test_formulas_have_the_constants_of_the_paper():
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    normal = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    assert float((F.silu(x) ** 2 * normal).sum().sqrt()) == pytest.approx(0.596, abs=5e-4)
    a, b = torch.tensor([[2.0]]), torch.tensor([[3.0, 5.0, 7.0, 11.0]])
    assert float(mp_silu(a)) == pytest.approx(2 / (1 + math.exp(-2)) / 0.596)
    assert float(mp_sum(a, b[:, :1], 0.3)) == pytest.approx((0.7 * 2 + 0.3 * 3) / math.sqrt(0.58))  # 3.02
    # Four channels beside one: C = sqrt((1 + 4) / (0.5^2 + 0.5^2)), each side times C / sqrt(its channels) / 2.
    c = math.sqrt(5 / 0.5)
    assert mp_cat(a, b)[0].tolist() == pytest.approx([2 * c / 2, *(v * c / 2 / 2 for v in (3, 5, 7, 11))])


def naive(block, x, emb, *, encoder):
    """The block of Figure 21, by hand: weights to unit length row by row, attention pixel by pixel."""

    def conv(layer, x):
        weight = layer.weight.detach().double()
        weight = torch.stack([row / (row.norm() + 1e-4 * math.sqrt(row.numel())) for row in weight])
        return x @ weight.T if weight.ndim == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    def unit(x):
        return x / (x.square().mean(1, keepdim=True).sqrt() + 1e-4)

    def silu(x):
        return x * torch.sigmoid(x) / 0.596

    if isinstance(block.skip, MPConv) and encoder:
        x = conv(block.skip, x)
    x = unit(x) if encoder else x
    scale = conv(block.residual.emb_proj, emb) * block.residual.emb_gain.detach().double() + 1
    y = conv(block.residual.conv1, silu(x)) * scale[:, :, None, None]
    y = conv(block.residual.conv2, silu(y))
    if isinstance(block.skip, MPConv) and not encoder:
        x = conv(block.skip, x)
    x = (0.7 * x + 0.3 * y) / math.sqrt(0.7**2 + 0.3**2)
    out = torch.zeros_like(x)
    width = x.shape[1] // block.attention.heads
    qkv = conv(block.attention.qkv, x)
    for head in range(block.attention.heads):
        q, k, v = (
            unit(part[:, head * width : (head + 1) * width]).flatten(2) for part in qkv.chunk(3, dim=1)
        )  # (B, width, N)
        for i in range(q.shape[2]):
            weights = ((q[:, :, i : i + 1] * k).sum(1) / math.sqrt(width)).softmax(dim=1)
            out.flatten(2)[:, head * width : (head + 1) * width, i] = (v * weights[:, None]).sum(2)
    return (0.7 * x + 0.3 * conv(block.attention.proj, out)) / math.sqrt(0.7**2 + 0.3**2)


@torch.no_grad()
@pytest.mark.parametrize("encoder", [True, False])
def test_a_block_is_the_figure_computed_by_hand(encoder):
    options = Options(emb_channels=12, dropout=0.0, head_channels=8)
    block = (EncoderBlock if encoder else DecoderBlock)(6, 16, options, attention=True)
    block.residual.emb_gain.fill_(0.7)
    x, emb = 2 * torch.randn(2, 6, 4, 5), torch.randn(2, 12)
    expected = naive(block, x.double(), emb.double(), encoder=encoder)
    torch.testing.assert_close(block(x, emb).double(), expected, rtol=1e-4, atol=1e-5)


def test_gains_start_at_zero_and_so_does_the_output():
    network = EDM2(**TINY)
    x, time = torch.randn(2, 3, 8, 8), torch.randn(2)
    assert not network(x, time, None).any()
    gains = [p for p in network.parameters() if p.ndim == 0]
    assert len(gains) == 1 + len(network.encoder) + len(network.decoder) and not any(gains)
    assert not any(name.endswith("bias") for name in network.state_dict())


@torch.no_grad()
def test_time_and_class_change_the_output_and_nothing_given_is_the_null_label(awake):
    network = awake(EDM2(**TINY))
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([-1.0, 0.5])
    plain = network(x, time, None)
    assert torch.equal(network(x, time, {"labels": torch.tensor([10, 10])}), plain)
    embedding = network.embed_labels(torch.tensor([10, 10]))
    assert torch.equal(network(x, time, {"embedding": embedding}), plain)
    for other in (network(x, time, {"labels": torch.tensor([0, 9])}), network(x, time + 0.1, None)):
        assert ((other - plain).abs().amax(dim=(1, 2, 3)) > 1e-4).all()


def rows(network):
    """The magnitudes of all weight vectors that are forced."""
    convs = [m.weight.flatten(1) for m in network.modules() if isinstance(m, MPConv)]
    tables = [m.weight.T for m in network.modules() if isinstance(m, MPClassEmbedding)]
    return torch.cat([w.detach().square().mean(1).sqrt() for w in convs + tables])


def test_weights_are_forced_to_unit_magnitude_and_their_length_is_of_no_account(awake):
    network = awake(EDM2(**TINY))
    x, time = torch.randn(2, 3, 8, 8), torch.randn(2)
    loose = network(x, time, None)
    assert (rows(network) - 1).abs().max() > 0.5
    network.project_weights()
    assert (rows(network) - 1).abs().max() < 1e-2  # eps beside the small weights of before
    network.project_weights()
    assert (rows(network) - 1).abs().max() < 2e-4
    torch.testing.assert_close(network(x, time, None), loose, rtol=2e-2, atol=1e-2)


def test_a_pass_that_is_given_up_leaves_the_weights_as_they_are():
    network = EDM2(**TINY, checkpointing=True).train()
    before = [p.clone() for p in network.parameters()]
    network(torch.randn(2, 3, 8, 8), torch.randn(2)).square().sum().backward()
    assert all(torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))


def test_frozen_weights_stay_the_same_bits():
    network = EDM2(**TINY)
    network.encoder.requires_grad_(False)
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(1.5)
    before = {name: p.clone() for name, p in network.named_parameters()}
    network.project_weights()
    for name, p in network.named_parameters():
        assert torch.equal(p, before[name]) == (name.startswith("encoder") or p.ndim == 0), name


def test_the_gradient_is_that_of_the_direction():
    layer = MPConv(32, 8)
    layer(torch.randn(16, 32)).square().sum().backward()
    along = (layer.weight.grad * layer.weight).sum(1) / (layer.weight.grad.norm(dim=1) * layer.weight.norm(dim=1))
    assert along.abs().max() < 1e-3


def test_an_image_that_cannot_be_halved_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"items of 7x8 cannot be halved once .*set dataset.image_size=8"):
        EDM2(**TINY).check_input((3, 7, 8))
    EDM2(**TINY).check_input((3, 6, 8))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"attention_levels": [2]}, "model.attention_levels"), ({"head_channels": 24}, "model.head_channels must divide")],
)
def test_settings_are_checked_as_those_of_the_unet(wrong, told):
    with pytest.raises(ValueError, match=told):
        EDM2(**TINY | wrong)


@pytest.fixture(scope="module")
def trained():
    """The network after 60 steps of Adam with a batch that it learns by heart, and the losses."""
    torch.manual_seed(0)
    network = EDM2(**TINY)
    x, time, labels = torch.randn(16, 3, 8, 8), torch.randn(16), torch.arange(16) % 10
    losses = []
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-2, betas=(0.9, 0.99))
    for _step in range(60):
        loss = (network(x, time, {"labels": labels}) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        network.project_weights()
        losses.append(loss.item())
    return network, losses


def test_weights_stay_of_unit_magnitude_through_training(trained):
    network, losses = trained
    assert losses[-1] < 0.4 * losses[0]
    assert (rows(network) - 1).abs().max() < 2e-4
    assert min(abs(float(p.detach())) for p in network.parameters() if p.ndim == 0) > 0  # all gains have opened


@torch.no_grad()
def test_a_trained_layer_keeps_the_magnitude_as_a_fresh_one_does(trained):
    for name, layer in trained[0].named_modules():
        if isinstance(layer, MPConv):
            out = layer(torch.randn(2048, layer.weight.shape[1], *([5, 5] if layer.kernel else [])))
            inner = out[:, :, 1:-1, 1:-1] if layer.kernel else out
            assert magnitude(inner) == pytest.approx(1, abs=0.05), name


def test_frequencies_stay_what_they_are_in_a_network_of_low_precision():
    network, time = EDM2(**TINY), torch.linspace(-1.5, 1.1, 9)
    expected = network.fourier(time)
    assert torch.equal(network.bfloat16().fourier(time), expected)
    assert network.conv_first.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("choice", ["cosine", "edm", "rectified_flow", "linear schedule.rescale_time=true"])
def test_features_go_through_as_many_periods_on_every_schedule(choice):
    """Of an index from 0 to 999 taken for ln(sigma) / 4 they would be noise."""
    name, *more = choice.split()
    of_schedule = {"edm": ["prediction=edm"], "rectified_flow": ["prediction=flow"]}.get(name, [])
    words = ["dataset=digits", "model=edm2_digits", f"schedule={name}", *of_schedule, *more]
    denoiser = build_denoiser(configuration("train", *words))
    first, last = denoiser.schedule.network_time(torch.tensor([1.0, 1000.0]))
    periods = denoiser.network.fourier.frequencies.double() * (last - first) / (2 * math.pi)
    assert float(periods.std()) == pytest.approx(2.65, rel=0.05)
