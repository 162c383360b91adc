"""Every option of every group builds what its YAML names, on the meta device, without data."""

from pathlib import Path

import pytest
import torch

from ddpm_cli import build, plan
from ddpm_cli.config import Composer, plain
from ddpm_cli.errors import UserError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
COMPOSER = Composer.for_command_line("train")
BUILT = [
    "dataset",
    "schedule",
    "model",
    "prediction",
    "variance",
    "weighting",
    "timesteps",
    "loss",
    "sampler",
    "optimizer",
    "ema",
]
OPTIONS = [f"{group}={file.stem}" for group in BUILT for file in sorted((CONFIGS / group).glob("*.yaml"))]
# What an option cannot be without: a table needs its file, a continuous schedule its own prediction and timesteps, ...
NEEDS = {
    "dataset=image_folder": ["dataset.root=photos", "dataset.num_classes=3"],
    "schedule=edm": ["prediction=edm", "weighting=edm", "timesteps=log_normal"],
    "timesteps=log_normal": ["schedule=edm", "prediction=edm", "weighting=edm"],
    "schedule=table": ["schedule.path=x.txt", "schedule.values=[0.9,0.5,0.1]", "sampler.num_steps=3"],
    "variance=learned": ["loss=hybrid"],
    "variance=learned_range": ["loss=hybrid"],
    "loss=hybrid": ["variance=learned_range"],
}


def composed(*overrides):
    return plain(COMPOSER.compose(list(overrides)))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_builds(option):
    cfg = composed(option, *NEEDS.get(option, []))
    with torch.device("meta"):
        denoiser = build.build_denoiser(cfg)
    assert callable(build.build_sampler(cfg))
    if option == "variance=analytic":
        with pytest.raises(UserError, match="run ddpm-analytic"):
            build.build_objective(cfg, denoiser)
        return
    loss, timesteps = build.build_objective(cfg, denoiser)
    assert callable(loss) and callable(timesteps)
    optimizer = build.build_optimizer(cfg, [torch.nn.Parameter(torch.zeros(2))])
    assert optimizer.param_groups[0]["lr"] == cfg["optimizer"]["lr"]
    assert denoiser.schedule.num_timesteps == cfg["schedule"].get("num_timesteps", 3)
    described = plan.describe({**cfg, "device": "cpu"})
    assert described["parameters"] > 0 and described["flops_per_image"] > 0


@pytest.mark.parametrize("file", sorted((CONFIGS / "experiment").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_experiment_builds_and_says_how_to_run_it(file):
    head = file.read_text(encoding="utf-8").splitlines()[:4]
    assert any(f"experiment={file.stem}" in line for line in head), "the first lines give the command"
    assert plan.describe({**composed(f"experiment={file.stem}"), "device": "cpu"})["parameters"] > 0


def test_the_papers_network_has_the_published_size_and_names():
    with torch.device("meta"):
        network = build.build_denoiser(composed("dataset=cifar10")).network
    assert sum(p.numel() for p in network.parameters()) == 35_746_307
    assert len(network.state_dict()) == 328
    assert "up_blocks.2.attentions.2.to_out.0.weight" in network.state_dict()


def test_learned_variance_doubles_the_outputs():
    with torch.device("meta"):
        denoiser = build.build_denoiser(composed("dataset=cifar10", "variance=learned_range"))
    assert denoiser.network.out_channels == 6


@pytest.mark.parametrize(
    "overrides,told",
    [
        (["dataset=shapes", "dataset.image_size=9", "model=unet_small"], "dataset.image_size"),
        (["model.attention_levels=[5]"], "model.attention_levels"),
        (["schedule=linear", "schedule.num_timesteps=10"], "schedule"),
    ],
)
def test_what_only_the_built_object_knows_is_told_by_key(overrides, told):
    with pytest.raises(UserError, match=told), torch.device("meta"):
        build.build_denoiser(composed(*overrides))


ZERO_SNR = ["schedule.zero_terminal_snr=true", "prediction=v", "weighting=v"]


@pytest.mark.parametrize(
    "overrides,told",
    [
        ([*ZERO_SNR, "sampler=heun"], "sampler=heun .* choose sampler=ddim"),
        ([*ZERO_SNR, "sampler=dpm2", "sampler.spacing=trailing"], "sampler=dpm2 .* choose sampler=ddim"),
        ([*ZERO_SNR, "sampler=euler"], "choose sampler.spacing=trailing"),
        (["sampler.spacing=[2000,0]"], "sampler.spacing"),
    ],
)
def test_a_sampler_that_cannot_walk_the_schedule_is_refused_with_the_plan(overrides, told):
    cfg = {**composed(*overrides), "device": "cpu"}
    with pytest.raises(UserError, match=told):
        plan.describe(cfg)
    remedied = {**cfg, "sampler": {**composed("sampler=ddim")["sampler"], "spacing": "trailing"}}
    assert plan.describe(remedied)["sampler"] == "DDIM"
