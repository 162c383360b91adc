"""Every choice composes, every value that cannot work is refused, and what is refused is named."""

from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from ddpm_cli.cli.flags import Line, with_quotes
from ddpm_cli.cli.preflight import accepted
from ddpm_cli.config.check import configuration
from ddpm_cli.config.compose import Composer
from ddpm_cli.config.groups import config_dir, primary_groups
from ddpm_cli.config.knobs import TABLE
from ddpm_cli.config.overrides import parse_override
from ddpm_cli.config.targets import GROUP_MODULES, check_target, load_target
from ddpm_cli.config.values import PATH, TEXT
from ddpm_cli.errors import UserError
from ddpm_cli.run_dir.find import find_checkpoint, resume_point
from ddpm_cli.run_dir.hydra_record import remembered_overrides, write_record
from ddpm_cli.system import tree
from ddpm_cli.system.launch_env import rank_of

OPTIONS = [
    (command, group, path.stem)
    for command in ("train", "sample", "eval")
    for group in primary_groups(command)
    for path in sorted(Path(config_dir(), group).glob("*.yaml"))
]
FLAGS = SimpleNamespace(cfg=None, config_dir=None, config_path=None, config_name=None, multirun=False)
REQUIRED = {
    "image_folder": ["dataset.root=pictures"],
    "torchvision": ["dataset.name=Flowers102"],
    "arrays": ["dataset.root=fields.npz"],
    "parquet": ["dataset.root=cats"],
    "audio_folder": ["dataset.root=recordings"],
    "latents": ["representation.autoencoder=kl"],
    "stft": ["dataset=tones"],
    "waveform": ["dataset=tones", "model=unet1d"],
    "table": ["schedule.path=table.txt"],
    "torchscript": ["features.path=network.pt"],
    "inpaint": ["edit.image=a.png", "edit.mask=b.png"],
    "sdedit": ["edit.image=a.png"],
    "reconstruct": ["edit.image=a.png"],
    "interpolate": ["edit.image=a.png", "edit.to=b.png"],
    "image": ["dataset=image_folder", "dataset.root=pictures", "condition.root=edges"],
    "vector": ["condition.path=vectors.npy"],
    "lora": ["init=RUN"],
}


def composed(command, *overrides):
    """The checked, plain configuration of a command line."""
    return configuration(command, *(["ckpt=x"] if command in ("sample", "eval") else []), *overrides)


def prepared(command, *overrides, **flags):
    """What a command line is accepted as."""
    with accepted(Line(command, SimpleNamespace(**{**vars(FLAGS), **flags}), list(overrides))) as found:
        return found


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def checkpoint(run, step=1):
    file = Path(run, "checkpoints", f"step_{step:08d}.pt")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


# Composition


@pytest.mark.parametrize(("command", "group", "option"), OPTIONS, ids=str)
def test_every_option_composes_passes_the_checks_and_has_a_range_for_every_number(command, group, option):
    config = composed(command, f"{group}={option}", *REQUIRED.get(option, []))
    numbers = [key for key in tree.keys(config) if type(tree.get(config, key)) in (int, float, list)]
    assert [key for key in numbers if not any(fnmatchcase(key, pattern) for pattern in TABLE)] == []


def test_what_options_share_is_no_group_and_no_choice():
    with Composer.opened("train") as composer:
        named = {*composer.groups, *composer.compose(["schedule=linear"]).hydra.runtime.choices}
    assert [name for name in named if "_base" in name] == []
    with pytest.raises(UserError, match="unknown key _base"):
        prepared("train", "_base=schedule")


def test_every_target_of_our_files_is_in_its_groups_module():
    for file in Path(config_dir()).rglob("*.yaml"):
        group = file.parent.name
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        target = content.get(group, content).get("_target_") if group in GROUP_MODULES else None
        if group in GROUP_MODULES:
            check_target(group, target)


def test_the_command_line_wins_over_the_data_sets_recipe_and_the_recipe_over_the_defaults():
    assert composed("train", "dataset=cifar10")["optimizer"]["warmup_steps"] == 5000
    assert composed("train", "dataset=cifar10", "optimizer=sgd")["optimizer"]["_target_"] == "torch.optim.SGD"
    assert composed("train", "dataset=cifar10", "training.num_steps=7")["training"]["num_steps"] == 7


def test_numbers_come_out_in_the_kind_of_their_default():
    config = composed("train", "optimizer.lr=1e-4", "training.num_steps=1e5", "optimizer.weight_decay=1")
    assert config["optimizer"]["lr"] == 1e-4
    assert config["training"]["num_steps"] == 100_000
    assert type(config["training"]["num_steps"]) is int
    assert type(config["optimizer"]["weight_decay"]) is float


def test_a_group_left_out_is_there_as_none():
    assert composed("sample")["variance"] is None


@pytest.mark.parametrize(
    ("command", "override"),
    [
        ("train", "compile=true"),
        ("train", "device=cuda:3"),
        ("train", "training.micro_batch_size=128"),
        ("train", "training.max_grad_norm=null"),
        ("train", "model.attention_levels=[]"),
        ("train", "dataset.num_classes=0"),
        ("train", "run_dir=2024"),
        ("train", "++seed=3"),
        ("sample", "labels=null"),
        ("sample", "labels=none"),
        ("sample", "labels=each"),
        ("sample", "labels=7"),
        ("sample", "labels=[3,7]"),
        ("sample", "sampler.num_steps=null"),
        ("sample", "sampler.spacing=karras"),
        ("sample", "sampler.spacing=[1000,500,1.5,0]"),
        ("sample", "variance=fixed_large"),
        ("sample", "weights=raw"),
    ],
)
def test_good_values_pass(command, override):
    composed(command, *with_quotes([override]))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.micro_batch_size=129", "training.batch_size=128"),
        ("training.stop_at=801", "training.num_steps=800"),
        ("schedule.num_timesteps=10", "sampler.num_steps"),
        ("model.attention_levels=[2]", "model.channel_mult"),
        ("training.keep_best=fid", "set eval_every=1000"),
        ("training.keep_best=nll_ode eval_every=10", "needs nll in eval.metrics"),
        ("training.keep_best=v_error_heldout training.heldout_every=0", "training.heldout_every above 0"),
        ("budget=10m eval_every=10", "does not count evaluations"),
        ("training.noise_scale=true training.batch_size=1", "training.batch_size above 1"),
    ],
)
def test_values_that_contradict_each_other_are_refused(override, told):
    with pytest.raises(UserError, match=told.replace(".", r"\.")):
        composed("train", *override.split())


def test_all_wrong_values_are_told_at_once():
    with pytest.raises(UserError) as caught:
        composed("train", "seed=-1", "optimizer.lr=nan", "training.num_steps=0")
    assert all(key in str(caught.value) for key in ("seed", "optimizer.lr", "training.num_steps"))


# The user's own files


@pytest.fixture
def mine(tmp_path):
    def write(name, text):
        file = tmp_path / "mine" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return str(tmp_path / "mine")

    return write


CATS = "# @package _global_\ndataset: {_target_: %s, root: cats, channels: 3, image_size: 8, num_classes: 2, fur: 3}\n"


def test_a_users_own_data_set_passes_with_its_own_keys(mine):
    folder = mine("dataset/cats.yaml", CATS % "ddpm_cli.data.image_folder.image_folder")
    prepared("train", "dataset=cats", "dataset.fur=4", config_dir=folder)
    with pytest.raises(UserError, match=r"unknown key dataset\.furr; did you mean dataset\.fur"):
        prepared("train", "dataset=cats", "dataset.furr=4", config_dir=folder)
    with pytest.raises(UserError, match=r"dataset\.fur must be"):
        prepared("train", "dataset=cats", "dataset.fur=soft", config_dir=folder)


def test_a_users_own_code_runs_only_when_trusted(mine):
    folder = mine("dataset/cats.yaml", CATS % "felidae.cats")
    with pytest.raises(UserError, match=r"trust=\[felidae\]"):
        prepared("train", "dataset=cats", config_dir=folder)
    prepared("train", "dataset=cats", "trust=[felidae]", config_dir=folder)


def test_a_users_search_path_works_as_config_dir_does(mine):
    folder = mine("dataset/cats.yaml", CATS % "ddpm_cli.data.image_folder.image_folder")
    prepared("train", f"hydra.searchpath=[{folder}]", "dataset=cats")
    with pytest.raises(UserError, match="nowhere"):
        prepared("train", "hydra.searchpath=[nowhere]")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("trainign: {num_steps: 5}", "unknown key trainign"),
        ("training: {num_stepz: 5}", r"unknown key training\.num_stepz; did you mean training\.num_steps"),
        ("optimizer: {momentun: 0.5}", r"unknown key optimizer\.momentun"),
        ("training: {num_steps: many}", r"training\.num_steps must be"),
        ("training: {num_steps: [}", "."),
    ],
)
def test_a_mistake_in_a_users_experiment_is_refused(mine, text, told):
    folder = mine("experiment/try.yaml", f"# @package _global_\n{text}\n")
    with pytest.raises(UserError, match=told):
        prepared("train", "experiment=try", config_dir=folder)


def test_a_users_experiment_passes_and_the_command_line_wins(mine):
    text = "defaults: [override /optimizer: sgd]\ntraining: {num_steps: 5}\noptimizer: {momentum: 0.5}\n"
    folder = mine("experiment/try.yaml", f"# @package _global_\n{text}")
    prepared("train", "experiment=try", "training.num_steps=6", "optimizer.nesterov=false", config_dir=folder)


# What a _target_ may name


@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("schedule", "os.system"),
        ("schedule", "ddpm_cli.diffusion.schedule"),
        ("schedule", "ddpm_cli.diffusion.schedule.torch.load"),
        ("schedule", "ddpm_cli.diffusion.schedule.__builtins__"),
        ("schedule", "ddpm_cli.diffusion.losses.Hybrid"),
        ("optimizer", "torch.load"),
        ("optimizer", "torch.optim.lr_scheduler.StepLR"),
        ("optimizer", "torch.optimum.Adam"),
        ("model", "ddpm_cli.models.unet.torch.load"),
        ("model", None),
        ("model", ["os.system"]),
        ("mine", "felidae.cats"),
    ],
)
def test_targets_outside_the_groups_module_are_refused(group, target):
    with pytest.raises(UserError, match="trust="):
        check_target(group, target)


def test_a_trusted_package_is_a_whole_name():
    check_target("dataset", "felidae.cats.load", ["felidae"])
    with pytest.raises(UserError):
        check_target("dataset", "felidaexx.cats", ["felidae"])


def test_load_target_refuses_what_a_module_merely_imports():
    assert load_target("x", "ddpm_cli.run_dir.find.run_of", ["ddpm_cli"]).__name__ == "run_of"
    with pytest.raises(UserError, match="defined in"):
        load_target("x", "ddpm_cli.run_dir.find.Path", ["ddpm_cli"])
    with pytest.raises(UserError, match="defined in"):
        load_target("x", "ddpm_cli.run_dir.find.os", ["ddpm_cli"])
    with pytest.raises(UserError, match="cannot be imported"):
        load_target("x", "ddpm_cli.run_dir.find.nothing", ["ddpm_cli"])


def test_a_target_deep_inside_a_group_is_checked_too(mine):
    text = "_target_: ddpm_cli.models.unet.UNet\nblocks: [{_target_: os.system, command: ls}]\n"
    folder = mine("model/deep.yaml", text)
    with pytest.raises(UserError, match=r"blocks\.0\._target_=os\.system"):
        prepared("train", "model=deep", config_dir=folder)


# Finding runs and checkpoints


def test_latest_is_the_run_written_last_and_its_furthest_step(tmp_path):
    import os

    for age, run in enumerate(["outputs/new", "outputs/multirun/old/0", "outputs/samples/never"]):
        for step in (9, 10):
            os.utime(checkpoint(run, step), (1e9 - age - step, 1e9 - age - step))
    assert find_checkpoint("latest") == Path("outputs/new/checkpoints/step_00000010.pt")
    assert find_checkpoint("outputs/multirun/old/0").name == "step_00000010.pt"
    assert find_checkpoint("outputs/new/checkpoints").name == "step_00000010.pt"
    with pytest.raises(UserError, match="name one: ckpt=outputs/multirun/old/0"):
        find_checkpoint("outputs/multirun")
    Path("copies").mkdir()
    Path("copies/a.pt").touch()
    with pytest.raises(UserError, match="no checkpoint in copies/checkpoints; name the file: ckpt=copies/a.pt"):
        find_checkpoint("copies")


def test_best_is_not_what_a_run_goes_on_from():
    checkpoint("run", 5)
    Path("run/checkpoints/best.pt").touch()
    assert find_checkpoint("run").name == "step_00000005.pt"


@pytest.mark.parametrize("spec", ["latest", "nowhere", "empty"])
def test_a_checkpoint_that_is_not_there_is_named(spec):
    Path("empty").mkdir()
    with pytest.raises(UserError, match=f"init={spec}: no "):
        find_checkpoint(spec, key="init")


def test_the_folder_is_what_run_dir_and_resume_name():
    file = checkpoint("outputs/a")
    Path("copy.pt").touch()
    here = Path.cwd()
    assert prepared("train").folder.parent.parent == here / "outputs"
    assert prepared("train", "run_dir=b").folder == here / "b"
    assert prepared("train", "hydra.run.dir=c").folder == here / "c"
    for spec in ("latest", "outputs/a", file):
        assert prepared("train", f"resume={spec}").folder == here / "outputs/a"
    assert prepared("train", "resume=copy.pt").folder.parent.parent == here / "outputs"
    assert prepared("train", "run_dir=b", "resume=auto").folder == here / "b"
    assert prepared("sample", "ckpt=copy.pt", "out_dir=d").folder == here / "d"
    with pytest.raises(UserError, match="run_dir=b"):
        prepared("train", "run_dir=b", "resume=outputs/a")


def test_auto_starts_a_run_and_then_goes_on_with_it():
    assert resume_point("auto", "a") is None
    assert resume_point("auto", checkpoint("a").parent.parent) == Path("a/checkpoints/step_00000001.pt")
    with pytest.raises(UserError, match="run_dir=b"):
        resume_point("a", "b")


# Resuming


def test_a_resumed_run_remembers_its_choices_but_not_what_one_invocation_was_about():
    hydra = checkpoint("a").parent.parent / ".hydra"
    hydra.mkdir()
    stored = ["model=cnn", "optimizer=sgd", "optimizer.momentum=0.5", "training.stop_at=3", "run_dir=a", "seed=4"]
    (hydra / "overrides.yaml").write_text(yaml.safe_dump(stored))
    assert remembered_overrides(Path("a"), ["resume=a", "seed=5"]) == stored[:3]
    assert remembered_overrides(Path("a"), ["optimizer=adam"]) == ["model=cnn", "seed=4"]
    found = prepared("train", "resume=a", "optimizer.momentum=0.6")
    assert found.overrides == ["model=cnn", "optimizer=sgd", "seed=4", "resume=a", "optimizer.momentum=0.6"]
    assert found.config["seed"] == 4 and found.checkpoint == Path("a/checkpoints/step_00000001.pt")
    write_record(Path("a"), {"overrides.yaml": "[seed=5]"}, resumed=True)
    assert Path("a/.hydra/resume-1/overrides.yaml").is_file()
    assert remembered_overrides(Path("a"), []) == ["seed=5"]


# The command line before Hydra


@pytest.mark.parametrize(
    "path",
    ["a=b.pt", "a,b", "a(1)", "a[1]", "~/x", "größe", "it's", "a\\b", "end\\", "a 'b\\' c", "2024", "x:y@z", "{a} b"],
)
@pytest.mark.parametrize(
    "key", ["run_dir", "lora", "conditions", "dataset.root", "features.path", "dataset.label_pattern"]
)
def test_any_path_or_text_survives_hydras_grammar(key, path):
    (quoted,) = with_quotes([f"{key}={path}"])
    assert parse_override(quoted).value() == path


def test_every_path_and_text_of_the_table_is_quoted():
    keys = [key.replace("*", "x") for key, rule in TABLE.items() if rule.accept in (PATH.accept, TEXT.accept)]
    assert len(keys) > 30
    for key in keys:
        assert with_quotes([f"{key}=a=b", f"+{key}=ü"]) == [f"{key}='a=b'", f"+{key}='ü'"]


def test_what_is_no_path_or_quoted_already_is_left_alone():
    argv = ["seed=1", "resume=null", "ckpt='a=b'", "run_dir=${oc.env:HOME}", "-m", "model=cnn"]
    assert with_quotes(argv) == argv
    assert with_quotes(["ckpt=a,b"], sweep=True) == ["ckpt=a,b"]
    assert with_quotes(["ckpt=a=b"], sweep=True) == ["ckpt='a=b'"]


def test_a_rank_is_known_by_what_its_launcher_left_in_the_environment():
    torchrun = {"RANK": "2", "WORLD_SIZE": "3"}
    srun = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}
    no_srun = [
        {**srun, "SLURM_STEP_ID": "4294967290"},  # a shell on a node
        {key: value for key, value in srun.items() if key != "SLURM_STEP_ID"},
        {**srun, "SLURM_STEP_NUM_TASKS": "1"},
    ]
    assert [rank_of(env) for env in (torchrun, srun)] == [2, 1]
    assert [rank_of(env) for env in ({}, {"RANK": "2"}, {**torchrun, "RANK": "?"}, *no_srun)] == [0] * 6


def test_every_scale_of_the_data_is_that_of_its_representation():
    """Of spectra, whose standard deviation is not that of images."""
    chosen = ["prediction=edm", "schedule=edm", "timesteps=log_normal"]
    for weighting in ("edm", "uncertainty"):
        config = composed("train", "dataset=fsdd", *chosen, f"weighting={weighting}")
        found = {key: tree.get(config, key) for key in tree.keys(config) if key.endswith("sigma_data")}
        assert len(found) >= 3 and {*found.values()} == {config["representation"]["std"]}


def test_a_choice_that_another_command_has_is_named_with_it():
    with pytest.raises(UserError, match="features is not for ddpm-sample: it is of ddpm-eval$"):
        prepared("sample", "ckpt=x", "features=inception")
    with pytest.raises(UserError, match="model is not for ddpm-sample: it comes from the checkpoint"):
        prepared("sample", "ckpt=x", "model=cnn")
