"""devices=N end to end: two gloo ranks on the CPU train as one does, stop together, and leave no process behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from commands import run
from test_training_run import TINY, tensors

# An uneven batch in micro-batches, label dropout, clipping, a learned variance, timesteps that learn.
CHOICES = (
    "training.batch_size=5 training.micro_batch_size=2 training.label_dropout=0.3 loss=hybrid variance=learned_range "
    "timesteps=loss_second_moment timesteps.history=1 training.num_steps=10 training.log_every=1 "
    "training.checkpoint_every=5 training.max_grad_norm=0.5 schedule.num_timesteps=20"
).split()
ENDLESS = "training.num_steps=100000 training.sample_every=0 training.log_every=1 training.checkpoint_every=5".split()
PLANNED = [
    ("ema.decay", "ema", "decay"),
    ("optimizer.decay", "optimizer", "decay"),
    ("optimizer.warmup_steps", "optimizer", "warmup_steps"),
]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small gain nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("devices")


@pytest.fixture(scope="module")
def one(place):
    run("train", *TINY, *CHOICES, "run_dir=one", cwd=place)
    return place / "one"


@pytest.fixture(scope="module")
def two(place):
    """A run on two ranks, of 10 steps."""
    run("train", *TINY, *CHOICES, "devices=2", "run_dir=two", cwd=place)
    return place / "two"


def weights(folder, step=10):
    return tensors(torch.load(folder / f"checkpoints/step_{step:08d}.pt", weights_only=True))


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def shortened(folder, name):
    """A copy of the run as it was at step 5."""
    to = folder.parent / name
    shutil.copytree(folder, to)
    (to / "checkpoints/step_00000010.pt").unlink()
    return to


def close(first, second):
    mine, theirs = weights(first), weights(second)
    assert mine.keys() == theirs.keys()
    assert torch.equal(mine["/learned/timesteps/counts"], theirs["/learned/timesteps/counts"])
    for name in mine:
        if name.startswith(("/network", "/emas")):
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=2e-5)


def test_two_ranks_train_as_one_does(one, two):
    assert losses(one) == pytest.approx(losses(two), abs=1e-5) and len(losses(one)) == 10
    close(one, two)


def test_resumed_on_as_many_ranks_it_is_the_uninterrupted_run_bit_for_bit(two, place):
    again = shortened(two, "two_again")
    done = run("train", f"resume={again}", cwd=place)
    mine, theirs = weights(two), weights(again)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine) and done.stdout.splitlines()[-1] == str(again)


def test_resumed_on_one_rank_it_is_the_same_to_rounding(two, place):
    again = shortened(two, "two_then_one")
    run("train", f"resume={again}", "devices=1", cwd=place)
    close(two, again)


@pytest.mark.parametrize(
    "line,expected",
    [
        ("devices=3 training.batch_size=2", "devices=3"),
        ("devices=0", "devices"),
        ("devices=x", "devices"),
        ("devices=2 device=cuda:1", "device=cuda:1"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(place, line, expected):
    done = run("train", *TINY, *line.split(), "run_dir=refused", cwd=place, check=False)
    assert done.returncode == 2 and expected in done.stderr and len(done.stderr.splitlines()) <= 3, done.stderr
    assert not (place / "refused").exists()


def test_more_gpus_than_there_are_is_refused_with_a_remedy(monkeypatch):
    from ddpm_cli import runtime

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert runtime.choose_devices("auto", "auto", 128) == 2 and runtime.choose_devices("auto", "cuda", 1) == 1
    assert runtime.choose_devices("auto", "cuda:1", 128) == 1 and runtime.choose_devices("auto", "cpu", 128) == 1
    with pytest.raises(ValueError, match="only 2 CUDA device.*devices=1"):
        runtime.choose_devices(4, "cuda", 128)
    with pytest.raises(ValueError, match="is one device"):
        runtime.choose_devices(2, "cuda:1", 128)


def test_ranks_of_srun_meet_on_the_first_node():
    from ddpm_cli.fleet import first_node

    names = {"gpu[03-05,9],login": "gpu03", "a,b": "a", "gpu-1": "gpu-1", "127.0.0.1": "127.0.0.1"}
    assert {name: first_node(name) for name in names} == names


def test_a_dry_run_states_the_devices(place):
    assert "devices: 2" in run("train", *TINY, "devices=2", "dry_run=true", cwd=place).stdout.splitlines()


def started(place, name, *more):
    """The command as the leader of a process group, once it has saved at step 5; the ids of its children."""
    argv = [sys.executable, "-m", "ddpm_cli.train", *TINY, *ENDLESS, "devices=2", f"run_dir={place / name}", *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(argv, cwd=place, start_new_session=True, **pipes)
    deadline = time.monotonic() + 120
    while not (place / name / "checkpoints/step_00000005.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return process, [int(child) for child in children]


def gone(pid, seconds=5.0):
    """Whether a process ends, or has ended and waits to be asked about."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(autouse=True)
def from_this_checkout(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    "number,code", [(signal.SIGTERM, 143), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow)]
)
def test_a_signal_to_all_saves_and_leaves_no_process(place, number, code):
    folder = place / f"ended_{code}"
    process, children = started(place, folder.name)
    sent = time.monotonic()
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code and f"resume={folder}" in err and time.monotonic() - sent < 10
    assert len(children) == 1 and gone(children[0])
    last = losses(folder)
    assert (folder / f"checkpoints/step_{len(last):08d}.pt").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_rank_that_dies_ends_the_run_in_a_line(place):
    process, children = started(place, "died")
    sent = time.monotonic()
    os.kill(children[0], signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 3 and time.monotonic() - sent < 10
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: rank 1 died (SIGKILL); resume with: ddpm-train resume={place / 'died'}"]
    assert "Traceback" not in err and (place / "died/checkpoints/step_00000005.pt").exists()
    assert json.loads((place / "died/result.json").read_text())["status"] == "failed"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ranks_die_with_the_first(place):
    process, children = started(place, "orphaned")
    process.kill()
    process.communicate()
    assert gone(children[0])


@pytest.mark.slow
def test_a_sweep_has_ranks_for_each_job_and_a_bad_batch_is_rolled_back_by_all(place):
    sweep = ["training.on_nonfinite=stop,rollback", "training.num_steps=6", "optimizer.lr=1e30"]
    done = run("train", "-m", *TINY, *sweep, "devices=2", "run_dir=sweep", cwd=place, check=False)
    assert done.returncode == 3 and "was not finite at step 2" in done.stderr, done.stderr
    assert done.stderr.count("; back to step 0, and its batch is left out") == 5
    assert [path.parts[-3] for path in place.glob("sweep/*/checkpoints/step_00000006.pt")] == ["1"]


@pytest.mark.slow
def test_ranks_of_torchrun_make_one_run(place, one):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "ddpm_cli.train", *TINY, *CHOICES]
    home = place / "torchrun"
    home.mkdir()
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=300)
    folders = list(home.glob("outputs/*/*"))
    assert done.returncode == 0 and len(folders) == 1, done.stderr
    assert done.stdout.splitlines()[-1:] == [str(folders[0])] and done.stdout.count("samples: ") == 1
    close(one, folders[0])
    wrong = subprocess.run([*command, "devices=3"], cwd=home, capture_output=True, text=True, timeout=300)
    assert "error: devices=3: torchrun started 2 ranks; leave devices out" in wrong.stderr


@pytest.mark.slow
def test_a_budget_is_planned_for_all_ranks(place):
    """Every rank follows the plan: the typed run with the same settings is the same, bit for bit."""
    quick = ["training.sample_every=0", "training.checkpoint_every=1000000"]
    choices = [text for text in CHOICES if not text.startswith(("training.num_steps", "training.checkpoint"))]
    run("train", *TINY, *choices, *quick, "devices=2", "budget=25s", "run_dir=planned", cwd=place)
    config = yaml.safe_load((place / "planned/config.yaml").read_text())
    steps = config["training"]["num_steps"]
    typed = [f"{key}={config[group][name]}" for key, group, name in PLANNED]
    run(
        "train", *TINY, *choices, *quick, "devices=2", f"training.num_steps={steps}", *typed, "run_dir=typed", cwd=place
    )
    mine, theirs = weights(place / "planned", steps), weights(place / "typed", steps)
    assert steps >= 20 and all(torch.equal(mine[name], theirs[name]) for name in mine)
