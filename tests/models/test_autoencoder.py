"""The autoencoder: diffusers' AutoencoderKL to rounding, key by key, and what it gives under training."""

import pytest
import torch

from ddpm_cli.models.autoencoder import AutoencoderKL

SIZE = {"in_channels": 3, "out_channels": 6, "latent_channels": 4, "channels": [8, 16, 16], "blocks_per_level": 2}
SIZE |= {"norm_num_groups": 4, "attention": True, "quant_conv": True}


@pytest.mark.parametrize("changed", [{}, {"attention": False, "quant_conv": False, "blocks_per_level": 1}])
def test_it_encodes_and_decodes_as_diffusers_does(changed):
    diffusers = pytest.importorskip("diffusers")
    size = {**SIZE, **changed}
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=size["channels"],
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=size["blocks_per_level"],
        norm_num_groups=4,
        latent_channels=4,
        mid_block_add_attention=size["attention"],
        use_quant_conv=size["quant_conv"],
        use_post_quant_conv=size["quant_conv"],
    ).eval()
    ours = AutoencoderKL(**size).eval()
    ours.load_state_dict(theirs.state_dict())
    x, z = torch.randn(2, 3, 16, 32), torch.randn(2, 4, 4, 8)
    with torch.no_grad():
        expected = theirs.encode(x).latent_dist
        mean, log_variance = ours.moments(x)
        torch.testing.assert_close(mean, expected.mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(log_variance, expected.logvar, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.decode(z), theirs.decode(z).sample, atol=1e-5, rtol=1e-5)
        kl = ours(x, torch.zeros(2))[:, 3, 0, 0]
        torch.testing.assert_close(kl * x[0].numel(), expected.kl(), atol=1e-3, rtol=1e-5)


def test_under_training_latents_have_the_noise_they_are_told_of():
    torch.manual_seed(0)
    network, x, noise = AutoencoderKL(**SIZE), torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    mean, log_variance = network.moments(x)
    z = mean + (log_variance / 2).exp() * noise.flatten(1)[:, :64].view(2, 4, 4, 4)
    torch.testing.assert_close(network(x, torch.zeros(2), {"noise": noise})[:, :3], network.decode(z))
    torch.testing.assert_close(network(x, torch.zeros(2))[:, :3], network.decode(network.encode(x)))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"out_channels": 3}, "experiment=autoencoder"),
        ({"channels": [8, 10]}, r"multiples of model.norm_num_groups=4, .* got \[8, 10\]"),
        ({"channels": 8}, "must be a list"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changed, told):
    with pytest.raises(ValueError, match=told):
        AutoencoderKL(**{**SIZE, **changed})


@pytest.mark.parametrize("shape", [(3, 18, 16), (3, 16, 6)])
def test_images_must_be_divisible(shape):
    with pytest.raises(ValueError, match="cannot be made 4 times smaller"):
        AutoencoderKL(**SIZE).check_input(shape)


def test_latents_are_no_larger_than_the_image():
    with pytest.raises(ValueError, match="latents larger than the image"):
        AutoencoderKL(**{**SIZE, "channels": [8], "latent_channels": 4}).check_input((3, 16, 16))
