"""The command line as its users meet it: what is refused, how that is told, exit codes, help, sweeps."""

import csv
import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from ddpm_cli.cli.reporting import report
from ddpm_cli.config import check
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.run_dir.hydra_record import write_record

ROOT = Path(__file__).resolve().parents[2]
WRONG_FOR_BOTH = {
    "seed=abc": "seed",
    "seed=1.5": "seed",
    "seed=-1": "seed",
    "seed=null": "seed",
    "seed=": "seed",
    "seed=nan": "seed",
    "seed=1e400": "seed",
    "seed=[1]": "seed",
    "seed={a:1}": "seed",
    "seed='3": "seed",
    "seed=1,2": "seed",
    "seed=99999999999999999999999": "from 0 to 9223372036854775807",
    "seed=${nope}": "seed",
    "seed=${nope": "seed",
    "seed=${oc.env:DDPM_NO_SUCH_VARIABLE}": "seed",
    "+seed=1": "seed",
    "~seed": "seed",
    "sede=1": "did you mean seed",
    "+new=1": "new",
    "++new=1": "new",
    "new.deep=1": "new.deep",
    "device=gpu": "device",
    "device=cuda:x": "device",
    "precision=fp8": "precision",
    "sampler=dimm": "did you mean ddim",
    "samplr=ddim": "did you mean sampler",
    "~sampler": "sampler",
    "sampler=null": "sampler",
    "+sampler=ddim": "sampler",
    "sampler=": "sampler",
    "sampler.eta=2": "sampler.eta",
    "sampler.eta=inf": "sampler.eta",
    "sampler.num_steps=0": "sampler.num_steps",
    "sampler.num_steps=none": "null",
    "sampler.num_stepz=3": "sampler.num_steps",
    "sampler=[ddim,dpmpp]": "sampler",
    "variance.x=1": "variance.x",
    "variance=nope": "variance",
    "=3": "=3",
    "seed": "settings are written KEY=VALUE; did you mean seed=VALUE?",
    "foo": "cannot read 'foo': settings are written KEY=VALUE; see them all with --help",
    "ddin": "did you mean sampler=ddim?",
    "help": "did you mean --help?",
    "": "KEY=VALUE",
    "--nope": "--nope",
    "--seed=3": "seed=",
    "--cfg=nope": "--cfg",
    "--config-dir=nowhere": "nowhere",
    "--config-name=nothing": "nothing",
    "--experimental-rerun=x.pickle": "resume",
    "sampler._target_=os.system": "trust=[os]",
    "trust=os": "trust",
    "trust=[1]": "trust",
    "hydra.nope=1": "hydra.nope",
    "hydra.run.dir=${nope}": "hydra.run.dir",
    "hydra.sweep.dir=${.x}": "hydra.sweep.dir",
    "hydra/launcher=nope": "nope",
    "sampler=glob(*)": "-m",
    "sampler=range(3)": "sampler",
}
WRONG_FOR_TRAIN = {
    "optimzer=adam": "did you mean optimizer",
    "optimizer=adan": "did you mean adam",
    "optimizer=adam,sgd": "-m",
    "model.chanels=3": "did you mean model.channels",
    "+model.chanels=3": "model.channels",
    "optimizer.momentum=0.9": "optimizer=adamw has lr",
    "optimizer.lr=0": "optimizer.lr",
    "optimizer.lr=nan": "optimizer.lr",
    "optimizer.lr=abc": "optimizer.lr",
    "optimizer.lr=true": "optimizer.lr",
    "optimizer.betas=[0.9]": "optimizer.betas",
    "optimizer.betas=[0.9,2]": "optimizer.betas",
    "optimizer.betas=0.9": "optimizer.betas",
    "optimizer.decay=linea": "did you mean linear",
    "training=3": "training.num_steps",
    "training.num_steps=0": "training.num_steps",
    "training.num_steps=1e30": "training.num_steps",
    "training.batch_size=-3": "training.batch_size",
    "training.micro_batch_size=1000": "training.batch_size",
    "training.stop_at=99999": "training.num_steps",
    "training.label_dropout=1.5": "training.label_dropout",
    "num_steps=5": "training.num_steps",
    "batch_size=5": "training.batch_size",
    "compile=maybe": "compile",
    "dry_run=yes": "dry_run",
    "dry_run=1": "dry_run",
    "dataset=image_folder": "dataset.root is required: add dataset.root=PATH",
    "dataset=cifar": "cifar10",
    "dataset.channels=0": "dataset.channels",
    "experiment=nope": "experiment",
    "model.attention_levels=[7]": "model.attention_levels",
    "model.channel_mult=[]": "model.channel_mult",
    "schedule.num_timesteps=0": "schedule.num_timesteps",
    "resume=latest": "resume=latest",
    "resume=nowhere": "nowhere",
    "resume=auto": "run_dir=PATH",
    "resume=": "resume",
    "init=nowhere": "init=nowhere",
    "run_dir=": "run_dir",
    "run_dir=a_file/x": "run_dir",
    "hydra.run.dir=a_file": "a_file",
    "run_dir=a_run": "resume=auto",
    "--config-name=sample": "is missing",
}
WRONG_FOR_SAMPLE = {
    "ckpt=nowhere": "ckpt=nowhere",
    "ckpt=latest": "ckpt=latest",
    "ckpt=": "ckpt",
    "ckpt=null": "ckpt",
    "ckpt=a_folder": "a_folder",
    "model=cnn": "checkpoint",
    "+model=cnn": "checkpoint",
    "schedule.s=1": "schedule.s",
    "training.num_steps=3": "sampler.num_steps",
    "num_images=0": "num_images",
    "num_image=3": "num_images",
    "batch_size=1.5": "batch_size",
    "labels=true": "the number or name of a class, a list of such as [3, 7], each, none or null, got true",
    "labels=[1.5]": "the number or name of a class",
    "labels=-1": "the number or name of a class",
    "labels=[]": "labels",
    "weights=em": "did you mean ema",
    "guidance=3": "guidance.scale",
    "guidance.scale=nan": "guidance.scale",
    "clip=1": "clip",
    "out_dir=a_file": "out_dir",
    "--config-name=train": "ckpt is missing",
}
CASES = [
    *[("train", text, told) for text, told in {**WRONG_FOR_BOTH, **WRONG_FOR_TRAIN}.items()],
    *[("sample", text, told) for text, told in [*list(WRONG_FOR_BOTH.items())[::2], *WRONG_FOR_SAMPLE.items()]],
]
ENDS = {
    "user": (UserError("seed=7 is unlucky\nchoose another"), 2, "error: seed=7 is unlucky\nchoose another\n"),
    "world": (WorldError("the disk is full"), 3, "error: the disk is full\n"),
    "memory": (MemoryError(), 3, "error: out of memory"),
    "disk": (OSError(28, "No space left on device"), 3, "error: [Errno 28]"),
    "interrupt": (KeyboardInterrupt(), 130, "interrupted"),
    "exit": (SystemExit(143), 143, ""),
    "bug": (ZeroDivisionError("our own"), 1, "Traceback"),
}


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty folder with a checkpoint, a plain file and a run in it, and logging as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "SLURM_PROCID", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    Path("a_file").touch()
    Path("a_folder").mkdir()
    Path("a_run/checkpoints").mkdir(parents=True)
    Path("a_run/checkpoints/step_00000001.pt").touch()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield tmp_path
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def build(monkeypatch):
    """A stand-in for the runs behind the doors that notes its calls; `fault` maps a seed to what to raise."""
    module = types.ModuleType("ddpm_cli.training_run.run")
    module.calls, module.fault = [], {}

    def run(config, context):
        module.calls.append((config, context))
        if config["seed"] in module.fault:
            raise module.fault[config["seed"]]
        logging.getLogger("ddpm_cli").info("working")
        if not config.get("dry_run") and "RANK" not in os.environ:
            write_record(context.run_dir, context.record, resumed=context.checkpoint is not None)
        print(context.run_dir)
        return 0.5

    module.run_training = module.run_sampling = run
    monkeypatch.setitem(sys.modules, "ddpm_cli.training_run.run", module)
    monkeypatch.setitem(sys.modules, "ddpm_cli.sampling.run", module)
    return module


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a command in this process: (exit code, stdout, stderr)."""

    def run(name, *argv):
        from ddpm_cli import analytic, eval, sample, train

        monkeypatch.setattr(sys, "argv", [f"ddpm-{name}", *argv])
        try:
            {"train": train, "sample": sample, "eval": eval, "analytic": analytic}[name].main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


# Refusals


@pytest.mark.parametrize(("name", "text", "told"), CASES)
def test_a_wrong_command_line_is_refused_in_three_lines_that_name_the_key(command, build, workplace, name, text, told):
    before = sorted(workplace.rglob("*"))
    needed = ["ckpt=a_file"] if name == "sample" and not text.startswith(("ckpt", "--config-name")) else []
    code, out, err = command(name, *needed, text)
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) <= 3
    assert "Traceback" not in err
    assert told in err
    assert build.calls == []
    assert sorted(workplace.rglob("*")) == before  # nothing is left behind


def test_what_was_searched_in_vain_is_told_in_full(command, workplace):
    for name, key in (("train", "resume"), ("train", "init"), ("sample", "ckpt")):
        assert f"no checkpoint below {workplace}/outputs/;" in command(name, f"{key}=latest")[2]
        assert f"no such file or run folder in {workplace};" in command(name, f"{key}=nowhere")[2]


def test_what_is_missing_is_asked_for(command):
    assert command("sample") == (2, "", "error: ckpt is required: ddpm-sample ckpt=PATH\n")


def test_a_traceback_is_shown_to_who_asks(command, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    code, _, err = command("train", "seed=abc")
    assert code == 2
    assert "Traceback" in err
    assert "error: seed" in err


def test_a_folder_that_cannot_be_written_is_told_before_anything_else(command, build):
    if os.geteuid() == 0:
        target, code = "run_dir=/proc/no", 2
    else:
        Path("closed").mkdir(mode=0o555)
        target, code = "run_dir=closed/run", 2
    got, out, err = command("train", target)
    assert (got, out) == (code, "")
    assert err.startswith("error: ")
    assert build.calls == []
    Path("outputs").touch()
    assert command("train")[0] == 3  # nobody typed that one


# Exit codes


@pytest.mark.parametrize("fault", ENDS)
def test_an_end_has_its_exit_code_and_its_line(command, build, fault):
    build.fault[7], code, told = ENDS[fault]
    got, out, err = command("train", "seed=7", "run_dir=here")
    assert (got, out) == (code, "")
    assert told in err
    if code in (2, 3):
        assert len(err.strip().splitlines()) <= 3
    assert not Path("here").exists()  # the folder is the work's to make


def test_a_refused_command_leaves_nothing_behind(command, build, workplace):
    build.fault[7] = UserError("seed=7 is unlucky")
    before = sorted(workplace.rglob("*"))
    for folder in ([], ["run_dir=new/er"], ["run_dir=a_folder/../new"], ["run_dir=a_folder"]):
        assert command("train", "seed=7", *folder)[0] == 2
        assert sorted(workplace.rglob("*")) == before
    assert command("sample", "ckpt=a_file", "seed=7", "out_dir=a_folder")[0] == 2
    assert sorted(workplace.rglob("*")) == before


def test_a_refusal_takes_away_nothing_of_a_run(command, build):
    assert command("train", "run_dir=run")[0] == 0
    Path("run/checkpoints").mkdir()
    Path("run/checkpoints/step_00000009.pt").touch()
    build.fault[7] = UserError("seed=7 is unlucky")
    before = sorted(Path("run").rglob("*"))
    assert command("train", "resume=run", "seed=7")[0] == 2
    assert sorted(Path("run").rglob("*")) == before  # nor does it remember the seed


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "photo.jpg", "samples/mine.png"])
def test_a_folder_of_other_files_is_no_run_folder(command, name):
    path = Path("own") / name
    path.parent.mkdir(parents=True)
    path.write_text("MINE")
    before = sorted(Path("own").rglob("*"))
    for more in ([], ["resume=auto"]):
        code, _, err = command("train", "run_dir=own", *more)
        assert code == 2 and "did not write" in err and "choose a new or an empty folder" in err
    assert sorted(Path("own").rglob("*")) == before and path.read_text() == "MINE"


def test_torchs_out_of_memory_is_the_worlds_fault(command, build):
    build.fault[7] = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2 GiB. GPU 0")
    code, _, err = command("train", "seed=7")
    assert code == 3
    assert "training.micro_batch_size" in err


# What a job is given


def test_a_job_gets_plain_checked_values_and_its_folder(command, build, workplace):
    code, out, err = command("train", "run_dir=a=b", "training.num_steps=1e2", "model=cnn")
    assert code == 0, err
    ((config, context),) = build.calls
    assert type(config) is dict
    assert type(config["model"]["channels"]) is list
    assert config["training"]["num_steps"] == 100
    assert config["model"]["in_channels"] == 1
    assert context.run_dir == workplace / "a=b"
    assert context.choices["model"] == "cnn"
    assert "training.num_steps=1e2" in context.overrides
    assert out == f"{context.run_dir}\n"  # logs go to stderr
    assert "working" in err
    assert Path("a=b/.hydra/overrides.yaml").is_file()


@pytest.mark.parametrize(
    ("argv", "compositions", "validations"),
    [
        ([], 1, 1),
        (["optimizer.lr=3e-4"], 2, 1),
        (["model=cnn", "seed=1"], 2, 1),
        (["experiment=ddpm", "seed=1"], 3, 1),  # and without the experiment, whose keys are checked too
        (
            ["-m", "seed=1,2", "hydra.verbose=false"],
            3 + 2 + 4,
            2,
        ),  # ours, and Hydra's own: the sweep and each job twice
    ],
)
def test_a_command_line_is_composed_and_checked_no_more_often_than_needed(
    command, build, monkeypatch, argv, compositions, validations
):
    calls = {"load_configuration": 0, "load_sweep_config": 0, "validated": 0}

    def counted(owner, name):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: calls.update({name: calls[name] + 1}) or real(*a, **k))

    counted(ConfigLoaderImpl, "load_configuration")
    counted(ConfigLoaderImpl, "load_sweep_config")
    counted(check, "validated")
    assert command("train", *argv)[0] == 0
    assert calls["load_configuration"] <= compositions and calls["validated"] == validations, calls


def test_runs_have_folders_of_their_own(command, build):
    for _ in range(2):
        assert command("train")[0] == 0
    first, second = (context.run_dir for _, context in build.calls)
    assert first != second
    assert first.parent.parent.name == "outputs"


def test_a_resumed_run_is_composed_as_it_was_and_keeps_its_record(command, build):
    assert command("train", "run_dir=a", "model=cnn", "optimizer=sgd", "training.stop_at=9")[0] == 0
    Path("a/checkpoints").mkdir()
    Path("a/checkpoints/step_00000009.pt").touch()
    record = Path("a/.hydra/overrides.yaml").read_text()
    code, _, err = command("train", "resume=a", "optimizer.momentum=0.5")
    assert code == 0, err
    config, context = build.calls[-1]
    assert context.run_dir.name == "a"
    assert context.choices["model"] == "cnn"
    assert config["optimizer"]["momentum"] == 0.5
    assert config["training"]["stop_at"] is None
    assert context.typed_keys == ["resume", "optimizer.momentum"]
    assert Path("a/.hydra/overrides.yaml").read_text() == record
    assert "optimizer.momentum=0.5" in Path("a/.hydra/resume-1/overrides.yaml").read_text()
    assert command("train", "run_dir=a", "resume=auto")[0] == 0


@pytest.mark.parametrize("resume", ["latest", "a_run", "a_file"])
def test_init_beside_resume_is_refused_and_beside_resume_auto_it_is_for_the_first_start(command, build, resume):
    code, _, err = command("train", f"resume={resume}", "init=a_file")
    assert code == 2 and "init=a_file" in err and "leave one of the two out" in err and len(err.splitlines()) == 1
    assert command("train", "run_dir=new", "resume=auto", "init=a_file")[0] == 0


def test_a_dry_run_leaves_nothing_behind(command, build, workplace):
    before = sorted(workplace.rglob("*"))
    assert command("train", "dry_run=true", "run_dir=a_run")[0] == 0
    assert len(build.calls) == 1
    assert sorted(workplace.rglob("*")) == before


def test_flags_may_stand_between_settings(command, build):
    code, _, err = command("train", "seed=1,2", "-m", "model=cnn")
    assert code == 0, err
    assert [config["seed"] for config, _ in build.calls] == [1, 2]


def test_a_rank_beside_the_first_writes_nothing(command, build, workplace, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = sorted(workplace.rglob("*"))
    assert command("train", "run_dir=a_run")[0] == 0
    assert command("sample", "ckpt=a_file", "out_dir=a_folder")[0] == 0
    assert command("train", "seed=abc") == (2, "", "")  # the first rank tells
    assert sorted(workplace.rglob("*")) == before


def test_one_device_and_sweeps_do_not_go_with_ranks_of_a_launcher(command, build, workplace, monkeypatch):
    before = sorted(workplace.rglob("*"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, told in (("0", "ranks started by torchrun"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        for name, argv in (
            ("analytic", ["ckpt=a_file"]),
            ("sample", ["-m", "ckpt=a_file"]),
            ("train", ["-m", "seed=1,2"]),
        ):
            code, out, err = command(name, *argv)
            assert (code, out) == (2, "") and told in err and bool(err) == bool(told)
    assert build.calls == [] and sorted(workplace.rglob("*")) == before


# Names


def test_a_name_stands_in_the_folder_that_nobody_named(command, build, workplace):
    for argv in (["name=first"], ["name=2"], ["name=Big_1-b.c"], ["-m", "name=swept", "seed=0,1"]):
        code, out, err = command("train", *argv)
        folder = Path(out.splitlines()[-1])
        name = next(word for word in argv if "=" in word).partition("=")[2]
        assert code == 0 and folder.name.endswith(f"-{name}") and folder.is_relative_to(workplace / "outputs"), err
        assert build.calls[-1][0]["name"] == name
    assert command("train", "name=first", "run_dir=mine")[1].splitlines() == [str(workplace / "mine")]
    code, out, _ = command("train", "-m", "name=a,b")
    assert code == 0 and not Path(out.splitlines()[-1]).name.endswith(("-a", "-b"))
    assert "| 1 b | done   |" in out


@pytest.mark.parametrize("name", ["a/b", "..", ".a", "-a", "'a b'", "x" * 51, "''", "[a]", "1.5", "true", "'a\nb'"])
def test_a_name_that_does_not_suit_a_folder_is_refused(command, build, name):
    code, out, err = command("train", f"name={name}")
    assert (code, out, build.calls) == (2, "", []) and err.startswith("error: name must be at most 50 letters"), err


# Sweeps


def read_summary(sweep):
    """The rows of summary.csv without their heads, and without what is always there and of no interest."""
    with open(sweep / "summary.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    told = [{key: value for key, value in row.items() if key not in ("name", "seconds")} for row in rows]
    columns = [key for key in told[0] if key in ("job", "status") or any(row[key] for row in told)]
    return [tuple(row[key] for key in columns) for row in told]


def test_a_sweep_has_a_folder_for_each_job_and_ends_with_its_own(command, build, workplace):
    code, out, err = command("train", "-m", "seed=1,2", "run_dir=sweep")
    assert code == 0, err
    folders = [str(workplace / "sweep/0"), str(workplace / "sweep/1")]
    table = ["| job | status | seed |", "|-----|--------|------|", "| 0   | done   | 1    |", "| 1   | done   | 2    |"]
    assert out.splitlines() == [*folders, *table, "", str(workplace / "sweep")]
    assert (workplace / "sweep/summary.md").read_text().splitlines() == table
    assert [config["run_dir"] for config, _ in build.calls] == folders
    assert build.calls[0][1].began < build.calls[1][1].began  # each job has a budget of its own


def test_a_failing_job_tells_at_once_and_the_others_go_on(command, build):
    build.fault = {2: WorldError("the disk is full"), 3: ZeroDivisionError("our own")}
    code, out, err = command("train", "-m", "seed=1,2,3,4")
    assert code == 3
    assert [config["seed"] for config, _ in build.calls] == [1, 2, 3, 4]
    folders = [str(context.run_dir) for _, context in build.calls]
    sweep = Path(folders[0]).parent
    assert out.splitlines()[:2] == [folders[0], folders[3]] and out.splitlines()[-1] == str(sweep)
    assert err.index("error: the disk is full") < err.index("seed=4")
    assert err.splitlines()[-1] == "error: 2 of 4 jobs failed: job 1: the disk is full"
    assert read_summary(sweep) == [
        ("0", "done", "1", ""), ("3", "done", "4", ""),
        ("1", "failed", "2", "the disk is full"), ("2", "failed", "3", "ZeroDivisionError: our own"),
    ]  # fmt: skip
    assert "Error executing job" not in err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["seed=1,abc"], "seed must be"),
        (["optimizer=adam,sdg"], "did you mean sgd"),
        (["optimizer=adamw,sgd", "optimizer.momentum=0.5,0.6"], "optimizer=adamw has"),
        (["seed=1,2", "resume=latest"], "resume"),
        (["seed=choice(1,-1)"], "seed must be"),
        (["seed=range(3,0)"], "seed"),
    ],
)
def test_a_sweep_with_a_wrong_value_is_refused_before_it_starts(command, build, argv, told):
    code, out, err = command("train", "-m", *argv)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert told in err
    assert build.calls == []


def test_every_kind_of_end_is_told_and_has_a_row(command, build, workplace):
    build.fault = {1: WorldError("the disk is full"), 2: UserError("no such data\nmore of it"), 3: UserError("neither")}
    code, out, err = command("train", "-m", "seed=0,1,2,3", "run_dir=sweep")
    assert code == 3
    told = ["error: 1 of 4 jobs failed: job 1: the disk is full", "2 of 4 jobs refused: job 2: no such data"]
    assert err.splitlines()[-2:] == told
    assert [row[:2] for row in read_summary(workplace / "sweep")] == [
        ("0", "done"), ("1", "failed"), ("2", "refused"), ("3", "refused"),
    ]  # fmt: skip
    assert "| no such data more of it |" in out


def test_a_combination_refused_in_its_job_has_a_row_even_where_no_other_is_left(command, build, workplace):
    sweep = "training.stop_at=20,30", "training.num_steps=40,25"  # each is right beside the other's first value
    code, out, err = command("train", "-m", *sweep, "run_dir=sweep")
    rows = read_summary(workplace / "sweep")
    assert [row[:2] for row in rows] == [("0", "done"), ("1", "done"), ("2", "done"), ("3", "refused")]
    assert code == 3 and "job 3: training.stop_at=30 must not exceed" in err.splitlines()[-1]
    assert out.splitlines()[-1] == str(workplace / "sweep")
    build.fault = {0: UserError("no")}
    assert command("train", "-m", "seed=0", "run_dir=other")[0] == 3
    assert read_summary(workplace / "other") == [("0", "refused", "no")]
    build.fault = {}
    assert command("train", "run_dir=other/0")[0] == 0  # the folder can be used


def test_a_job_run_again_replaces_its_row_and_a_refusal_leaves_a_run_that_is_there(command, build, workplace):
    build.fault = {2: WorldError("the disk is full")}
    assert command("train", "-m", "seed=1,2", "run_dir=sweep")[0] == 3
    build.fault = {1: UserError("it holds a run")}
    (workplace / "sweep/0/checkpoints").mkdir()
    (workplace / "sweep/0/checkpoints/step_00000001.pt").touch()
    code, _, err = command("train", "-m", "seed=1,2", "run_dir=sweep")
    assert code == 3 and err.splitlines()[-1] == "error: job 0 failed: it holds a run"
    assert read_summary(workplace / "sweep") == [("0", "done", "1"), ("1", "done", "2")]
    (workplace / "sweep/0/result.json").write_text('{"status": "interrupted"}')  # as a run that is gone on with ends
    build.fault = {}
    assert command("train", "resume=sweep/0")[0] == 0
    assert read_summary(workplace / "sweep") == [("1", "done", "2"), ("0", "interrupted", "1")]


def test_an_interrupted_sweep_stops_and_has_its_table(command, build):
    build.fault = {1: KeyboardInterrupt()}
    code, out, _ = command("train", "-m", "seed=0,1,2")
    assert code == 130 and len(build.calls) == 2
    assert [row[:2] for row in read_summary(Path(out.splitlines()[-1]))] == [("0", "done"), ("1", "interrupted")]


# Help, completion, start-up


def test_the_help_is_the_programs_own(command):
    for name in ("train", "sample", "eval"):
        code, out, err = command(name, "--help")
        assert (code, err) == (0, "")
        assert out.startswith(f"ddpm-{name}: ")
        assert "powered by Hydra" not in out
        assert f"ddpm-{name} --cfg job" in out
        assert "${" not in out
    assert "unet_cifar10" in command("train", "--help")[1]


def test_every_key_of_the_primary_configuration_is_in_the_help(command):
    from ddpm_cli.config.groups import primary_groups, primary_keys

    for name in ("train", "sample", "eval"):
        out = command(name, "--help")[1]
        keys = {*primary_keys(name), *primary_groups(name)} - {"experiment"}
        assert {key for key in keys if key not in out} == set()


def test_the_version_is_ours(command):
    from ddpm_cli import __version__

    assert command("train", "--version") == (0, f"ddpm-train {__version__}\n", "")


def test_cfg_shows_the_configuration_even_when_something_is_missing(command):
    code, out, _ = command("sample", "--cfg", "job")
    assert code == 0
    assert "ckpt: ???" in out
    code, out, _ = command("train", "--cfg", "job", "-p", "optimizer", "optimizer=sgd")
    assert code == 0
    assert "momentum: 0.9" in out
    assert command("train", "--cfg", "job", "seed=abc")[0] == 2


def test_tab_completion_still_works(monkeypatch):
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "COMP_LINE": "ddpm-train optimizer=", "COMP_POINT": "21"}
    argv = [sys.executable, "-m", "ddpm_cli.train", "-sc", "query=bash"]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60)
    assert "optimizer=adamw" in done.stdout.split(), done.stderr


def test_what_runs_nothing_answers_at_once_and_without_torch():
    script = (
        "import sys, time\nfrom ddpm_cli import train\n"
        "for line in sys.argv[1:]:\n"
        "    began = time.process_time()\n    sys.argv = ['ddpm-train', *line.split()]\n"
        "    try:\n        train.main()\n    except SystemExit:\n        pass\n"
        "    assert not {'torch', 'numpy', 'sklearn'} & set(sys.modules), line\n"
        "    print('took', time.process_time() - began)\n"
    )
    environ, lines = {**os.environ, "PYTHONPATH": str(ROOT)}, ["--help", "--cfg job", "seed=abc", "-m seed=1,abc"]
    done = subprocess.run([sys.executable, "-c", script, *lines], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    took = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("took ")]
    assert len(took) == len(lines) and max(took) < 5.0  # of the processor, half a second on a quiet machine


def test_the_module_runs_as_a_program():
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "ddpm_cli.sample"], env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == "error: ckpt is required: ddpm-sample ckpt=PATH\n"


def test_a_reader_that_closes_the_pipe_gets_no_traceback():
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    for argv in ("--cfg all", "--help"):
        line = f"{sys.executable} -m ddpm_cli.train {argv} | head -c 0"
        done = subprocess.run(line, shell=True, env=environ, capture_output=True, text=True, timeout=60)
        assert done.stderr == ""


def test_an_error_without_words_is_told_by_its_kind(capsys):
    assert report(UserError(""), "train") == 2
    assert capsys.readouterr().err == "error: UserError\n"
