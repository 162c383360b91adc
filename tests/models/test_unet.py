"""The DDPM U-Net: its size, its agreement with diffusers, its conditions and its refusals."""

import pytest
import torch

from ddpm_cli.models.blocks import Upsample, arranged, double, folding_pays
from ddpm_cli.models.unet import UNet

TINY = {
    "in_channels": 3,
    "out_channels": 3,
    "num_classes": 10,
    "class_conditional": False,
    "channels": 16,
    "channel_mult": [1, 2],
    "blocks_per_level": 1,
    "attention_levels": [1],
    "dropout": 0.0,
}
CIFAR10 = TINY | {"channels": 128, "channel_mult": [1, 2, 2, 2], "blocks_per_level": 2, "dropout": 0.1}

IDDPM = {"channel_mult": [1, 2, 2], "attention_levels": [1, 2], "head_channels": 16, "scale_shift_norm": True}
ADM = IDDPM | {"attention_levels": [2], "resblock_updown": True, "learned_null": False}


def unet(**changes) -> UNet:
    return UNet(**(TINY | changes))


def test_cifar10_network_has_the_size_of_the_paper():
    with torch.device("meta"):
        network = UNet(**CIFAR10)
    assert sum(p.numel() for p in network.parameters()) == 35_746_307
    assert len(network.state_dict()) == 328


@pytest.mark.parametrize(
    "settings",
    [
        CIFAR10,
        TINY | {"out_channels": 6, "channel_mult": [1, 2, 3], "blocks_per_level": 2, "attention_levels": [0, 2]},
        TINY | {"class_conditional": True, "channels": 48, "channel_mult": [1, 2], "attention_levels": []},
        TINY | {"channels": 8, "channel_mult": [2, 3]},
        TINY | IDDPM | {"num_classes": 5, "class_conditional": True},
        TINY | ADM,
    ],
    ids=["cifar10", "learned_variance", "class_conditional", "first_level_wider", "iddpm", "adm"],
)
@torch.no_grad()
def test_diffusers_loads_the_weights_and_agrees(settings, awake):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = awake(UNet(**settings))
    reference = diffusers.UNet2DModel(**network.diffusers_config()).eval()
    reference.load_state_dict(network.state_dict())
    x, labels = torch.randn(2, 3, 32, 32), torch.tensor([3, network.null_label])
    for t in (3.0, 777.0):
        time = torch.full((2,), t)
        expected = reference(x, time, class_labels=labels if network.class_conditional else None).sample
        output = network(x, time, {"labels": labels})
        assert expected.std() > 0.1
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_output_is_zero_before_training():
    assert not unet()(torch.randn(2, 3, 16, 16), torch.tensor([0.0, 999.0]), None).any()


@pytest.mark.parametrize("size", [(28, 28), (32, 16), (8, 8)])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_any_size_that_can_be_halved_works(size, patch_size, awake):
    network = awake(unet(patch_size=patch_size, out_channels=6))
    network.check_input((3, *size))
    output = network(torch.randn(2, 3, *size), torch.tensor([1.0, 2.5]), None)
    assert output.shape == (2, 6, *size) and output.isfinite().all()


def test_size_that_cannot_be_halved_is_refused():
    network = unet(channel_mult=[1, 2, 2, 2], attention_levels=[])
    with pytest.raises(ValueError, match=r"28x28 .* divisible by 8; set dataset.image_size=32"):
        network.check_input((3, 28, 28))


@torch.no_grad()
def test_every_image_of_a_batch_is_told_its_own_time_and_class(awake):
    network = awake(unet(class_conditional=True))
    x, time, labels = torch.randn(3, 3, 8, 8), torch.tensor([1.0, 500.0, 1.0]), torch.tensor([0, 1, 2])
    together = network(x, time, {"labels": labels})
    for i in range(3):
        alone = network(x[i : i + 1], time[i : i + 1], {"labels": labels[i : i + 1]})
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together, network(x, time, {"labels": labels.flip(0)}), atol=1e-3)
    assert not torch.allclose(together, network(x, time + 100, {"labels": labels}), atol=1e-3)


@torch.no_grad()
def test_no_condition_is_the_null_label_and_an_embedding_stands_in_for_labels(awake):
    network = awake(unet(class_conditional=True))
    x, time, labels = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([4, 5])
    null = network(x, time, {"labels": torch.full((2,), network.null_label)})
    torch.testing.assert_close(network(x, time, None), null)
    torch.testing.assert_close(network(x, time, {}), null)
    embedding = network.embed_labels(labels)
    assert embedding.shape == (2, 64)
    torch.testing.assert_close(
        network(x, time, {"embedding": embedding, "labels": labels * 0}), network(x, time, {"labels": labels})
    )


@torch.no_grad()
def test_null_label_without_a_row_embeds_to_zero():
    network = unet(class_conditional=True, learned_null=False)
    assert network.class_embedding.num_embeddings == 10
    null, other = network.embed_labels(torch.tensor([network.null_label, 9]))
    assert not null.any() and torch.equal(other, network.class_embedding.weight[9])


@torch.no_grad()
def test_doubling_folded_into_the_convolution_is_the_same():
    up = Upsample(6)
    torch.nn.init.normal_(up.conv.bias)
    x = torch.randn(2, 6, 8, 10)
    assert folding_pays(x) and not folding_pays(x[..., :2, :2])
    torch.testing.assert_close(up(x, x), up.conv(double(x)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_unconditional_network_ignores_labels(awake):
    network = awake(unet(num_classes=None))
    x, time = torch.randn(2, 3, 8, 8), torch.rand(2)
    torch.testing.assert_close(network(x, time, {"labels": torch.tensor([1, 2])}), network(x, time, None))


def test_bf16_autocast_trains(awake):
    network = awake(unet(class_conditional=True)).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = network(torch.randn(2, 3, 8, 8), torch.rand(2), {"labels": torch.tensor([1, 10])})
    output.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_groups_divide_every_width_and_hold_four_channels():
    for channels, groups in ((128, 32), (96, 24), (48, 12), (24, 6), (6, 1)):
        assert unet(channels=channels).plan.groups == groups


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_levels": [2]}, r"model.attention_levels must lie in 0..1 .* got \[2\]"),
        ({"channel_mult": []}, "model.channel_mult .* got"),
        ({"channel_mult": [1, 0]}, "model.channel_mult .* got"),
        ({"channels": 15}, "model.channels must be even"),
        ({"blocks_per_level": 0}, "model.blocks_per_level"),
        ({"head_channels": 24}, r"model.head_channels must divide .* \[32\], got 24"),
        ({"class_conditional": True, "num_classes": None}, "model.class_conditional=true .* num_classes=None"),
    ],
)
def test_settings_that_make_no_network_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        unet(**changes)


def test_diffusers_has_no_patches():
    with pytest.raises(ValueError, match=r"model.patch_size=2"):
        unet(patch_size=2).diffusers_config()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_doubling_gives_every_pixel_four_times_in_the_layout_that_came(dtype):
    x = torch.randn(2, 3, 4, 5).to(dtype).requires_grad_()
    y = double(x)
    assert y.is_contiguous() and torch.equal(y, x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    y.sum().backward()
    assert (x.grad == 4).all()
    up = Upsample(3).to(dtype)
    assert up(x, x).is_contiguous()


def test_large_images_that_are_drawn_have_the_channels_last_and_others_not():
    large, small = torch.randn(2, 8, 32, 32), torch.randn(2, 8, 16, 16)
    for x in (large, large.contiguous(memory_format=torch.channels_last), small):
        with torch.no_grad():
            drawn = arranged(x)
        assert torch.equal(drawn, x) and drawn.is_contiguous() == (x is small)
        assert torch.equal(arranged(x), x) and arranged(x).is_contiguous()  # for a backward pass


@pytest.mark.parametrize("changes", [{}, {"resblock_updown": True, "scale_shift_norm": True}, {"patch_size": 2}])
def test_drawing_computes_what_training_does(changes, awake):
    network = awake(unet(**changes))
    seen: list[bool] = []
    network.conv_norm_out.register_forward_hook(lambda module, args, out: seen.append(out.is_contiguous()))
    x, time = torch.randn(2, 3, 64, 64), torch.tensor([1.0, 500.0])
    trained = network(x, time)
    with torch.no_grad():
        torch.testing.assert_close(network(x, time), trained, rtol=1e-4, atol=1e-5)
    assert seen == [True, False]  # all the way up
