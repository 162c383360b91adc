"""Folders of diffusers' AutoencoderKL: ours are opened there, theirs here, and what is another network is refused."""

import json

import pytest
import torch

from ddpm_cli.errors import UserError
from ddpm_cli.formats import autoencoder
from ddpm_cli.models.autoencoder import AutoencoderKL

SIZE = {"in_channels": 3, "latent_channels": 4, "channels": [8, 16], "blocks_per_level": 1, "norm_num_groups": 4}
SIZE |= {"attention": True, "quant_conv": True}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    autoencoder.write(tmp_path / "vae", SIZE, AutoencoderKL(**SIZE, out_channels=6).state_dict())
    return autoencoder.folder_of(tmp_path)  # of a pipeline


def test_diffusers_opens_what_is_written_and_so_do_we(folder, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderKL.from_pretrained(folder).eval()
    model, weights, scale = autoencoder.read(folder)
    assert scale == 1 and model == {"_target_": autoencoder.TARGET, **SIZE}
    ours = AutoencoderKL(**SIZE, out_channels=6)
    ours.load_state_dict(weights)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(x), theirs.encode(x).latent_dist.mean, atol=1e-5, rtol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    model, again, _ = autoencoder.read(tmp_path / "theirs")
    assert model == {"_target_": autoencoder.TARGET, **SIZE} and all(torch.equal(again[k], weights[k]) for k in weights)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"_class_name": "AutoencoderTiny"}, "of diffusers' autoencoders AutoencoderKL is opened"),
        ({"act_fn": "gelu"}, "act_fn=gelu is another network"),
        ({"out_channels": 1}, "out_channels=1 is another network"),
        ({"down_block_types": ["AttnDownEncoderBlock2D", "DownEncoderBlock2D"]}, "down_block_types=.* another network"),
        ({"use_post_quant_conv": False}, "use_post_quant_conv=False is another network"),
        ({"temporal": 3}, "temporal=3 is a setting that is not known here"),
        ({"scaling_factor": "x"}, "scaling_factor=x is no number"),
    ],
)
def test_other_networks_are_refused_by_name(folder, changed, told):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    with pytest.raises(UserError, match=told):
        autoencoder.read(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="no diffusion_pytorch_model.safetensors beside its config.json"):
        autoencoder.read(folder)
