"""An untrained checkpoint, ddpm-eval's work on it in this process, and features that take no training."""

import json

import pytest
import torch
from projection import Projection, composed

from ddpm_cli.build.model import build_denoiser
from ddpm_cli.config.context import Context
from ddpm_cli.evaluation import evaluator
from ddpm_cli.evaluation.run import run_evaluation
from ddpm_cli.run_dir import checkpoint

TINY = (
    "dataset=shapes dataset.image_size=8 dataset.channels=1 dataset.num_images=200 model=cnn model.channels=[8] "
    "schedule.num_timesteps=50 sampler.num_steps=3"
).split()


@pytest.fixture(scope="session")
def ckpt(tmp_path_factory):
    """A small network with random weights, trained on shapes as it says."""
    cfg = composed("train", *TINY)
    torch.manual_seed(0)
    network = build_denoiser(cfg).network
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    weights = network.state_dict()
    path = tmp_path_factory.mktemp("evaluation") / "tiny.pt"
    data = {"class_names": ["disc", "square", "triangle", "cross"]}
    checkpoint.save(path, {"step": 1, "config": cfg, "network": weights, "emas": {"ema": weights}, "data": data})
    return path


@pytest.fixture
def features(monkeypatch):
    """What takes the place of trained features from now on."""

    def use(extractor):
        monkeypatch.setattr(evaluator, "build_features", lambda *_: extractor)
        return extractor

    use(Projection())
    return use


@pytest.fixture
def evaluate(ckpt, features, tmp_path, capsys, monkeypatch):
    """Evaluates with the given overrides into a folder: (evaluation.json, folder, what was said on stdout)."""

    monkeypatch.chdir(tmp_path)  # the data's cache is below

    def run(*overrides, out="out", source=f"ckpt={ckpt}"):
        typed = [source, "precision=fp32", *overrides]
        capsys.readouterr()
        run_evaluation(composed("eval", *typed), Context(tmp_path / out, typed))
        return json.loads((tmp_path / out / "evaluation.json").read_text()), tmp_path / out, capsys.readouterr().out

    return run
