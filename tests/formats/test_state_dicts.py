"""Weights of Ho's and OpenAI's programs, with their flags beside them, against their networks written out."""

import json

import pytest
import torch
from commands import TINY, run
from reference_networks import HoUNet, OpenAIUNet

from ddpm_cli.build import load_denoiser
from ddpm_cli.errors import UserError
from ddpm_cli.formats.find import find_model

SMALL = {"image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2", "attention_resolutions": "8"}
NETWORK = {"channels": 32, "mult": [1, 2], "blocks": 1, "attend_at": [2]}
OPENAI = {  # flags, and the network that they make there
    "improved": ({"num_heads": 4}, {"heads": 4}),
    "learned sigma": ({"learn_sigma": True, "num_heads": 2}, {"out": 6, "heads": 2}),
    "classes": ({"class_cond": True, "num_classes": 7}, {"classes": 7}),
    "added": ({"use_scale_shift_norm": False}, {"scale_shift": False}),
    "adm": ({"num_head_channels": 16, "resblock_updown": True, "use_new_attention_order": True},
        {"head_channels": 16, "updown": True, "new_order": True}),
    "heads of several widths": ({"attention_resolutions": "16,8"}, {"attend_at": [1, 2]}),
    "deeper": ({"channel_mult": "1,2,2", "num_res_blocks": 2}, {"mult": [1, 2, 2], "blocks": 2}),
}  # fmt: skip


def written(place, network, flags, name="ema"):
    """The state dict and its flags, as they lie in a folder; every weight counts."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, parameter.mean().item(), 0.1)
    torch.save(network.state_dict(), place / f"{name}.pt")
    (place / f"{name}.json").write_text(json.dumps(flags))
    return place / f"{name}.pt"


@pytest.mark.parametrize("name", OPENAI)
@torch.no_grad()
def test_weights_of_openai_compute_the_same(name, tmp_path):
    flags, changes = OPENAI[name]
    network = OpenAIUNet(**(NETWORK | changes)).eval()
    own = load_denoiser(written(tmp_path, network, SMALL | flags))
    x, time, labels = torch.randn(3, 3, 16, 16), torch.tensor([0.0, 3.0, 777.0]), torch.tensor([0, 6, 2])
    told = labels if "classes" in changes else None
    expected = network(x, time, told)
    assert expected.std() > 0.1
    torch.testing.assert_close(own.network(x, time, {"labels": labels}), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_weights_of_ho_compute_the_same(tmp_path):
    network = HoUNet(32, [1, 2, 2], 2, [1]).eval()
    flags = {"resolution": 16, "ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": 2, "attn_resolutions": [8]}
    own = load_denoiser(written(tmp_path, network, flags))
    x, time = torch.randn(3, 3, 16, 16), torch.tensor([0.0, 3.0, 777.0])
    expected = network(x, time)
    assert expected.std() > 0.1
    torch.testing.assert_close(own.network(x, time), expected, rtol=0, atol=1e-5)
    assert float(own.schedule.alpha_bar[1000]) == pytest.approx(4.0358e-5, rel=1e-3)  # Ho et al.'s linear betas


def test_the_network_of_cifar10_has_hos_names(tmp_path):
    """Of Ho's published model the settings are the defaults: the JSON file need only say what it is."""
    with torch.device("meta"):
        network = HoUNet(128, [1, 2, 2, 2], 2, [1])
    assert sum(p.numel() for p in network.parameters()) == 35_746_307
    (tmp_path / "ema.pt").touch()
    (tmp_path / "ema.json").write_text('{"ch": 128}')
    assert find_model(tmp_path / "ema.pt") == tmp_path / "ema.pt"


def test_it_draws_trains_on_and_is_exported(tmp_path):
    flags = SMALL | {"diffusion_steps": 400, "noise_schedule": "cosine", "rescale_timesteps": True}
    written(tmp_path, OpenAIUNet(**NETWORK), flags)
    schedule = load_denoiser(tmp_path / "ema.pt").schedule
    assert schedule.network_time(torch.tensor(201.0)) == 500  # of 400 steps, as of 1000
    run("sample", "ckpt=ema.pt", "num_images=1", "sampler.num_steps=2", "out_dir=drawn", cwd=tmp_path)
    data = ("dataset=shapes", "dataset.num_images=20", "dataset.image_size=16", "training.batch_size=4")
    run("train", "init=ema.pt", *data, "training.num_steps=1", "training.num_samples=2", "run_dir=on", cwd=tmp_path)
    run("export", "ckpt=on", "format=safetensors", "out_dir=file", cwd=tmp_path)
    done = run("export", "ckpt=on", "out_dir=folder", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "another time" in done.stderr  # rescaled: diffusers tells the index itself


REFUSED = {
    "channel_mult": {"channel_mult": "2,2"},
    "num_heads_upsample": {"num_heads_upsample": 2},
    "rescale_timesteps": {"diffusion_steps": 4000},
    "noise_schedule": {"noise_schedule": "sqrt"},
    "something_new": {"something_new": 1},
    "diffusion_steps": {"diffusion_steps": 10**12, "rescale_timesteps": True},
    "flags cannot be read": {"attention_resolutions": [8]},
    "pixels": {"image_size": "large"},
    "resamp_with_conv": {"resamp_with_conv": False, "ch": 32},
    "out_ch": {"out_ch": 6, "ch": 32},
    "model_var_type": {"model_var_type": "learned", "ch": 32},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_flag_that_cannot_be_followed_is_refused_by_its_name(name, tmp_path):
    (tmp_path / "ema.pt").touch()
    flags = REFUSED[name] if "ch" in REFUSED[name] else SMALL | REFUSED[name]
    (tmp_path / "ema.json").write_text(json.dumps(flags))
    with pytest.raises(UserError, match=name):
        find_model(tmp_path / "ema.pt")


def test_other_weights_than_the_flags_say_are_refused(tmp_path):
    file = written(tmp_path, OpenAIUNet(**NETWORK), SMALL | {"num_res_blocks": 2})
    done = run("sample", f"ckpt={file}", "out_dir=drawn", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "does not fit this network" in done.stderr


def test_a_checkpoint_of_ours_is_one_whatever_lies_beside_it(trained, tmp_path):
    (file,) = trained(*TINY).glob("checkpoints/*.pt")
    (tmp_path / "model.pt").write_bytes(file.read_bytes())
    (tmp_path / "model.json").write_text("{}")
    run("sample", "ckpt=model.pt", "num_images=1", "sampler.num_steps=2", "out_dir=drawn", cwd=tmp_path)
