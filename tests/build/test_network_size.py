"""model=auto: the network grows with what the run can compute, whatever the images' shape."""

from itertools import pairwise

import pytest
from commands import run

from ddpm_cli.build import network_size
from ddpm_cli.build.machine import forward_flops
from ddpm_cli.build.model import build_denoiser, item_shape
from ddpm_cli.build.network_size import with_network_sized
from ddpm_cli.config.check import configuration
from ddpm_cli.errors import UserError

SIZES = ("patch_size", "channels", "channel_mult", "blocks_per_level", "attention_levels")


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Of 2e11 operations a second."""
    monkeypatch.setattr(network_size, "speed", lambda cfg: 2e11)


def sized(*overrides):
    cfg = with_network_sized(configuration("train", "dataset=shapes", "model=auto", *overrides))
    network = build_denoiser(cfg).network
    network.check_input(item_shape(cfg))
    return cfg["model"], forward_flops(network, item_shape(cfg))


def test_twice_the_root_of_the_time_is_a_network_of_twice_the_operations():
    flops = [sized(f"budget={budget}", "dataset.image_size=32")[1] for budget in ("1m", "10m", "100m", "1000m")]
    assert all(2 < larger / smaller < 5 for smaller, larger in pairwise(flops)), flops  # root of 10


SIZES_OF_IMAGES = [(size, "1m") for size in (8, 9, 15, 17, 28, 32, 50, 64, 100, 128, 256)]
SIZES_OF_IMAGES += [(size, "10000m") for size in (8, 17, 32, 100, 256)]  # a second each: the networks are large


@pytest.mark.parametrize("size,budget", SIZES_OF_IMAGES)
def test_every_size_of_image_gets_a_network(size, budget):
    model, _ = sized(f"budget={budget}", f"dataset.image_size={size}")
    assert all(model[key] is not None for key in SIZES)


def test_without_a_budget_the_images_of_the_run_decide():
    few, many = (sized(f"training.num_steps={steps}", "dataset.image_size=32")[1] for steps in (500, 50_000))
    assert few < many


def test_what_is_typed_stays_and_other_networks_are_let_be():
    model, _ = sized("budget=5m", "model.channels=24", "dataset.image_size=32")
    assert model["channels"] == 24 and model["patch_size"] == 2
    cfg = configuration("train", "dataset=shapes", "model=unet_small", "budget=5m")
    assert with_network_sized(cfg) is cfg


def test_waveforms_are_refused():
    cfg = configuration("train", "dataset=tones", "representation=waveform", "model=auto")
    with pytest.raises(UserError, match="for waveforms set model=unet1d"):
        with_network_sized(cfg)


def test_a_budget_chooses_the_whole_recipe_and_what_is_typed_stays(tmp_path):
    def plan(*overrides):
        lines = run("train", "dry_run=true", "dataset=cifar10", *overrides, cwd=tmp_path).stdout.splitlines()
        return dict(line.split(": ", 1) for line in lines)

    papers, quick = plan(), plan("budget=10m")
    assert papers["optimizer"] == "Adam" and papers["prediction"] == "Epsilon" and papers["parameters"] == "35746307"
    assert quick["optimizer"] == "Muon" and quick["prediction"] == "V" and int(quick["parameters"]) < 10_000_000
    typed = plan("budget=10m", "optimizer=adamw", "optimizer.lr=1e-4", "model=unet_cifar10", "training.batch_size=8")
    assert (typed["optimizer"], typed["lr"], typed["batch_size"]) == ("AdamW", "0.0001", "8")
    assert typed["parameters"] == "35746307" and typed["prediction"] == "V"
    assert plan("budget=10m", "experiment=ddpm")["optimizer"] == "Adam"


def test_the_same_command_goes_on_with_the_network_that_was_chosen_whatever_would_be_now(tmp_path, monkeypatch):
    line = ["dataset=shapes", "dataset.image_size=8", "dataset.num_images=100", "model=auto", "training.batch_size=8"]
    line += ["training.sample_every=0", "schedule.num_timesteps=50", "run_dir=a", "resume=auto"]
    run("train", *line, "training.num_steps=4", "training.stop_at=2", cwd=tmp_path)
    monkeypatch.setattr(network_size, "_flops_worth", lambda cfg: 1e12)
    run("train", *line, "training.num_steps=4", cwd=tmp_path)
    refused = run("train", *line, "training.num_steps=4", "model.channels=48", cwd=tmp_path, check=False)
    assert refused.returncode == 2 and "model cannot change on resume: the checkpoint was" in refused.stderr


def test_the_speed_is_that_of_convolutions(monkeypatch):
    monkeypatch.undo()
    assert 1e8 < network_size.speed(configuration("train", "dataset=shapes", "device=cpu", "precision=fp32")) < 1e13
