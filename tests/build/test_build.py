"""Every option of every group builds what its YAML names, on the meta device, without data."""

from pathlib import Path

import pytest
import torch

from ddpm_cli.build.instantiate import make
from ddpm_cli.build.model import build_denoiser, build_sampler, null_label
from ddpm_cli.build.network_size import with_network_sized
from ddpm_cli.build.summary import describe, repeated
from ddpm_cli.build.trainer import build_objective, build_optimizer, build_parts, build_state
from ddpm_cli.config.check import configuration
from ddpm_cli.config.compose import Composer, plain
from ddpm_cli.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
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
OF_AUTOENCODERS = ["variance=learned", "dataset=shapes", "training.sample_every=0", "training.heldout_every=0"]
REST_OF_AUTO = ["model.attention_levels=[1]", "model.patch_size=1"]
# What an option cannot be without: a table needs its file, a continuous schedule its own prediction and timesteps, ...
NEEDS = {
    "dataset=arrays": [
        *("dataset.root=fields.npz", "dataset.channels=2", "dataset.image_size=[16,24]"),
        *("dataset.num_classes=3", "dataset.dtype=float32", "dataset.range=[0,1]"),
    ],
    "dataset=parquet": ["dataset.root=cats", "dataset.num_classes=3"],
    "dataset=image_folder": ["dataset.root=photos", "dataset.num_classes=3"],
    "dataset=torchvision": [
        *("dataset.name=Flowers102", "dataset.num_classes=102", "dataset.channels=3", "dataset.image_size=32")
    ],
    "model=auto": ["model.channels=8", "model.channel_mult=[1,2]", "model.blocks_per_level=1", *REST_OF_AUTO],
    "model=autoencoder_kl": ["loss=autoencoding", *OF_AUTOENCODERS],
    "loss=autoencoding": ["model=autoencoder_kl", *OF_AUTOENCODERS],
    "model=unet1d": ["dataset=tones", "representation=waveform", "dataset.num_samples=1024"],
    "model=unet_sound": ["dataset=tones"],
    "schedule=edm": ["prediction=edm", "weighting=edm", "timesteps=log_normal"],
    "timesteps=log_normal": ["schedule=edm", "prediction=edm", "weighting=edm"],
    "schedule=table": ["schedule.path=x.txt", "schedule.values=[0.9,0.5,0.1]", "sampler.num_steps=3"],
    "variance=learned": ["loss=hybrid"],
    "variance=learned_range": ["loss=hybrid"],
    "loss=hybrid": ["variance=learned_range"],
}


def composed(*overrides):
    with Composer.opened("train") as composer:
        return plain(composer.compose(overrides))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_builds(option):
    cfg = composed(option, *NEEDS.get(option, []))
    with torch.device("meta"):
        denoiser = build_denoiser(cfg)
    assert callable(build_sampler(cfg, denoiser))
    if option == "variance=analytic":
        with pytest.raises(UserError, match="run ddpm-analytic"):
            build_objective(cfg, denoiser)
        return
    loss, timesteps = build_objective(cfg, denoiser)
    assert callable(loss) and callable(timesteps)
    optimizer = build_optimizer(cfg, torch.nn.Linear(2, 2))
    assert optimizer.param_groups[0]["lr"] == cfg["optimizer"]["lr"]
    assert denoiser.schedule.num_timesteps == cfg["schedule"].get("num_timesteps", 3)
    described = describe({**cfg, "device": "cpu"})
    assert described["parameters"] > 0 and described["flops_per_image"] > 0


@pytest.mark.parametrize("option", ["adamw", "muon"])
@pytest.mark.parametrize("of", ["matrices", "all"])
def test_decay_is_of_the_matrices_alone_unless_asked_otherwise(option, of):
    cfg = composed(f"optimizer={option}", "optimizer.weight_decay=0.5", "optimizer.lr=0.1")
    if of == "all":
        del cfg["optimizer"]["weight_decay_of"]  # as in a checkpoint that was written before there was a choice
    torch.manual_seed(0)
    conv, norm, embedding = torch.nn.Conv2d(2, 2, 3), torch.nn.GroupNorm(1, 2), torch.nn.Embedding(3, 2)
    network = torch.nn.ModuleDict({"conv": conv, "norm": norm, "embedding": embedding})
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = build_optimizer(cfg, network)
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    decayed = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    biased = {"norm.weight", "conv.bias", "embedding.weight"}  # norm.bias is 0
    assert decayed == ({"conv.weight"} if of == "matrices" else {"conv.weight", *biased})


@pytest.mark.parametrize("file", sorted((CONFIGS / "experiment").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_experiment_builds_and_says_how_to_run_it(file):
    head = file.read_text(encoding="utf-8").splitlines()[:4]
    assert any(f"experiment={file.stem}" in line for line in head), "the first lines give the command"
    cfg = with_network_sized({**composed(f"experiment={file.stem}"), "device": "cpu"})
    assert describe(cfg)["parameters"] > 0


def test_the_papers_network_has_the_published_size_and_names():
    with torch.device("meta"):
        network = build_denoiser(composed("dataset=cifar10")).network
    assert sum(p.numel() for p in network.parameters()) == 35_746_307
    assert len(network.state_dict()) == 328
    assert "up_blocks.2.attentions.2.to_out.0.weight" in network.state_dict()


def test_learned_variance_doubles_the_outputs():
    with torch.device("meta"):
        denoiser = build_denoiser(composed("dataset=cifar10", "variance=learned_range"))
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
        build_denoiser(composed(*overrides))


ZERO_SNR = ["schedule.zero_terminal_snr=true", "prediction=v", "weighting=v"]


@pytest.mark.parametrize(
    "overrides,told",
    [
        ([*ZERO_SNR, "sampler=heun"], "sampler=heun .* choose sampler=ddim"),
        ([*ZERO_SNR, "sampler=dpm2", "sampler.spacing=trailing"], "sampler=dpm2 .* choose sampler=ddim"),
        ([*ZERO_SNR, "sampler=euler", "sampler.spacing=karras"], "choose sampler.spacing=trailing"),
        (["sampler.spacing=[2000,0]"], "sampler.spacing"),
    ],
)
def test_a_sampler_that_cannot_walk_the_schedule_is_refused_with_the_plan(overrides, told):
    cfg = {**composed(*overrides), "device": "cpu"}
    with pytest.raises(UserError, match=told):
        describe(cfg)
    remedied = {**cfg, "sampler": {**composed("sampler=ddim")["sampler"], "spacing": "trailing"}}
    assert describe(remedied)["sampler"] == "DDIM"


MINE = """
from dataclasses import dataclass
import torch

def weights(): return lambda level: level.snr

class Learned(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
    def __call__(self, level): return self.weight * level.snr

@dataclass(frozen=True)
class Times:
    def __call__(self, u, schedule): return torch.ones_like(u).long(), torch.ones_like(u)

class Loss:
    def __init__(self, weighting): self._weight = weighting
    def __call__(self, denoiser, x_0, cond, t, noise): ...

class Sigma:
    def __call__(self, raw, level_t, level_s, floor): return floor

class Net(torch.nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.body = torch.nn.Conv2d(in_channels, out_channels, 1)
    def forward(self, x, time, cond=None): return self.body(x)

class Slotted:
    __slots__ = ()
    def __call__(self, u, schedule): return u, u
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A configuration whose parts come from a package outside this one that knows nothing of the Protocols."""
    package = f"mine_{tmp_path.name}"
    (tmp_path / f"{package}.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    parts = {"weighting": "weights", "timesteps": "Times", "loss": "Loss", "variance": "Sigma", "model": "Net"}
    nodes = {group: {"_target_": f"{package}.{name}"} for group, name in parts.items()}
    nodes["model"] |= {"in_channels": 1}
    return {**composed(), **nodes, "trust": [package]}


def test_code_from_elsewhere_need_not_state_what_an_axis_has_defaults_for(mine):
    parts = build_parts(mine)
    denoiser, loss, timesteps = parts.denoiser, parts.loss, parts.timesteps
    assert timesteps.covers_all and not denoiser.variance.learned and not loss.uses_bound
    timesteps.observe(torch.ones(2), torch.ones(2))
    assert loss.weighting.balance(3.0, None) == 3.0
    assert null_label(denoiser.network) is None and denoiser.network.augment_dim == 0
    assert build_state(mine, parts).learned == {}


def test_a_weighting_from_elsewhere_that_is_a_module_is_trained_along(mine):
    cfg = {**mine, "weighting": {"_target_": f"{mine['trust'][0]}.Learned"}}
    state = build_state(cfg, build_parts(cfg))
    assert list(state.learned) == ["weighting"]
    assert sum(len(group["params"]) for group in state.optimizer.param_groups) == 3


def test_an_option_that_cannot_be_given_a_default_is_refused_in_a_line(mine):
    told = "timesteps: Slotted states no covers_all; derive it from ddpm_cli.diffusion.timesteps.Timesteps"
    with pytest.raises(UserError, match=told):
        make("timesteps", {"_target_": f"{mine['trust'][0]}.Slotted"}, mine["trust"])


@pytest.mark.parametrize("group", ["prediction", "variance", "weighting", "timesteps"])
def test_what_an_axis_offers_is_no_option_of_it(group):
    with pytest.raises(UserError, match="offers, and none itself"):
        make(group, {"_target_": f"ddpm_cli.diffusion.{group}.{group.title()}"}, [])


@pytest.mark.parametrize(
    "choice", ["cnn model.channels=16", "unet_small model.channels=[16]", "dit_small model.channels=[8]"]
)
def test_a_width_where_a_list_is_wanted_and_the_reverse_is_told(choice):
    with pytest.raises(UserError, match=r"model\.channels must be"):
        build_denoiser(configuration("train", *f"model={choice}".split()))


def test_what_is_learnt_by_heart_is_said_of_small_sets_seen_often():
    assert repeated(167, "images", 167 * 795).startswith("each of the 167 images is seen 795 times: expect copies")
    assert "memorisation" not in repeated(20, "sounds", 20_000)
    assert repeated(167, "images", 167 * 100) is None and repeated(50_000, "images", 10**9) is None


@pytest.mark.parametrize("num_samples", [2048, 3000, 5985, 8000])
def test_spectra_of_any_length_fit_the_default_network(num_samples):
    build_denoiser(configuration("train", "dataset=tones", f"dataset.num_samples={num_samples}"))
