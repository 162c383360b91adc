"""The README's lines on fine-tuning, latents, few steps and trackers run as they are written, one after the other."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import run
from PIL import Image

from ddpm_cli.formats import autoencoder
from ddpm_cli.models.autoencoder import AutoencoderKL
from ddpm_cli.training.trackers.base import Tracker
from ddpm_cli.training_run import tracking

README = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
TITLES = ["## Fine-tuning", "### One or two steps", "### Latents", "### Trackers"]
QUICK = {
    "train": "training.num_steps=2 training.batch_size=2 training.num_samples=2 training.heldout_every=0",
    "sample": "num_images=2",
    "export": "",
}


def lines_of(title):
    block = re.search(rf"^{title}\n.*?```\n(.*?)```", README, re.DOTALL | re.MULTILINE)[1]
    return [line for line in block.splitlines() if line.startswith("ddpm-")]


def test_the_sections_have_lines():
    assert [len(lines_of(title)) for title in TITLES] == [5, 2, 5, 3]


def opened(source, download):
    """Noise in the place of what would be downloaded."""
    shape = (24, 28, 28) if source.dataset.__name__ == "MNIST" else (24, 32, 32, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return SimpleNamespace(data=images, targets=[k % 10 for k in range(24)])


class Told(Tracker):
    """In the place of a package that need not be here, or of a server."""

    def __init__(self, *given):
        self.losses = []

    def begin(self, settings, config, step): ...

    def scalars(self, values, step):
        self.losses += [value for name, value in values.items() if name == "curves/loss"]

    def picture(self, tag, picture, step): ...

    def rewind(self, step): ...

    def end(self, status, figures): ...


@pytest.fixture
def place(tmp_path):
    """RUN, an outputs/ with another run, photos, and an autoencoder of diffusers."""
    for k in range(4):
        file = tmp_path / "photos" / ("cat", "dog")[k % 2] / f"{k}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (60, 80, 3), np.uint8)).save(file)
    run("train", *QUICK["train"].split(), "run_dir=RUN", cwd=tmp_path)
    size = {"in_channels": 3, "latent_channels": 4, "channels": [4, 4, 4, 4], "blocks_per_level": 1}
    size |= {"norm_num_groups": 2, "attention": True, "quant_conv": True}
    torch.manual_seed(0)
    autoencoder.write(tmp_path / "sd-vae", size, AutoencoderKL(**size, out_channels=6).state_dict())
    return tmp_path


@pytest.mark.parametrize(
    "title", [pytest.param(title, marks=pytest.mark.slow) if "Latents" in title else title for title in TITLES]
)
def test_the_lines_of_a_section_run_in_turn(title, place, monkeypatch):
    monkeypatch.setattr("ddpm_cli.data.torchvision_sets.open_set", opened)
    monkeypatch.setattr("ddpm_cli.cli.preflight.check_trackers", lambda config: None)
    made = []
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(tracking._MADE, name, lambda *given: made.append(Told(*given)) or made[-1])
    for line in lines_of(title):
        command, *words = shlex.split(line, comments=True)
        name = command.removeprefix("ddpm-")
        done = run(name, *words, *QUICK[name].split(), cwd=place, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert (place / done.stdout.splitlines()[-1]).exists(), line
    assert len(made) == (3 if title == "### Trackers" else 0) and all(tracker.losses for tracker in made)
