"""devices=N end to end: three gloo ranks on the CPU train as one does, stop together, and leave no process behind.

With two, sums in another order would still be the same bits.
"""

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
from commands import TINY, run, tensors

# Micro-batches, label dropout, clipping, a learned variance, timesteps that learn.
CHOICES = (
    "training.batch_size=12 training.micro_batch_size=3 training.label_dropout=0.3 loss=hybrid variance=learned_range "
    "timesteps=loss_second_moment timesteps.history=1 training.num_steps=10 training.log_every=1 "
    "training.checkpoint_every=5 training.max_grad_norm=0.5 schedule.num_timesteps=20"
).split()
ENDLESS = (
    "training.batch_size=12 training.num_steps=100000 training.sample_every=0 training.log_every=1 "
    "training.checkpoint_every=5"
).split()
PLANNED = [
    ("ema.decay", "ema", "decay"),
    ("optimizer.decay", "optimizer", "decay"),
    ("optimizer.warmup_steps", "optimizer", "warmup_steps"),
]
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("devices")


@pytest.fixture(scope="module")
def one(place):
    run("train", *TINY, *CHOICES, "run_dir=one", cwd=place)
    return place / "one"


@pytest.fixture(scope="module")
def three(place):
    """A run on three ranks, of 10 steps."""
    run("train", *TINY, *CHOICES, "devices=3", "run_dir=three", cwd=place)
    return place / "three"


def weights(folder, step=10):
    return tensors(torch.load(folder / f"checkpoints/step_{step:08d}.pt", weights_only=True))


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


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


def test_three_ranks_train_as_one_does(one, three):
    assert losses(one) == pytest.approx(losses(three), abs=1e-5) and len(losses(one)) == 10
    close(one, three)
    assert sorted(path.name for path in (three / "logs").iterdir()) == ["rank_1.log", "rank_2.log"]


def test_resumed_on_as_many_ranks_it_is_the_uninterrupted_run_bit_for_bit(three, place):
    again = shortened(three, "three_again")
    done = run("train", f"resume={again}", cwd=place)
    mine, theirs = weights(three), weights(again)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine) and done.stdout.splitlines()[-1] == str(again)


def test_resumed_on_one_rank_it_is_the_same_to_rounding(three, place):
    again = shortened(three, "three_then_one")
    run("train", f"resume={again}", "devices=1", cwd=place)
    close(three, again)


@pytest.mark.parametrize(
    "line,expected",
    [
        (
            "devices=3 training.batch_size=8",
            "devices=3, and training.batch_size=8 is no multiple of 3; use training.batch_size=6 or",
        ),
        ("devices=0", "devices"),
        ("devices=x", "devices"),
        ("devices=2 device=cuda:1", "device=cuda:1"),
        ("devices=500 training.batch_size=1000", "devices=500: this machine has"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(place, line, expected):
    done = run("train", *TINY, *line.split(), "run_dir=refused", cwd=place, check=False)
    assert done.returncode == 2 and expected in done.stderr and len(done.stderr.splitlines()) <= 3, done.stderr
    assert not (place / "refused").exists()


def test_more_gpus_than_there_are_is_refused_with_a_remedy(monkeypatch):
    from ddpm_cli.system.device import choose_devices

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_devices("auto", "auto", 128) == 2 and choose_devices("auto", "cuda", 1) == 1
    assert choose_devices("auto", "cuda:1", 128) == 1 and choose_devices("auto", "cpu", 128) == 1
    with pytest.raises(ValueError, match="only 2 CUDA device.*devices=1"):
        choose_devices(4, "cuda", 128)
    with pytest.raises(ValueError, match="is one device"):
        choose_devices(2, "cuda:1", 128)


def test_ranks_of_srun_meet_on_the_first_node():
    from ddpm_cli.system.ranks import first_node

    names = {"gpu[03-05,9],login": "gpu03", "a,b": "a", "gpu-1": "gpu-1", "127.0.0.1": "127.0.0.1"}
    assert {name: first_node(name) for name in names} == names


def test_a_dry_run_states_the_devices(place):
    assert "devices: 2" in run("train", *TINY, "devices=2", "dry_run=true", cwd=place).stdout.splitlines()


def started(place, name, *more):
    """The command as the leader of a process group, once it has saved at step 5; the ids of its other ranks."""
    argv = [sys.executable, "-m", "ddpm_cli.train", *TINY, *ENDLESS, "devices=3", f"run_dir={place / name}", *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(argv, cwd=place, start_new_session=True, **pipes)
    wait_for(process, place / name / "checkpoints/step_00000005.pt")
    return process, [child for child in children_of(process.pid) if "spawn_main" in command_of(child)]


def wait_for(process, file):
    deadline = time.monotonic() + 300  # a busy machine takes a minute to import torch
    while not file.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.1)


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def gone(pid, seconds=30.0):
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


@pytest.mark.slow
@linux
@pytest.mark.parametrize(
    "number,code,to", [(signal.SIGTERM, 143, "all"), (signal.SIGHUP, 129, "all"), (signal.SIGTERM, 143, 2)]
)
def test_a_signal_saves_and_leaves_no_process(place, number, code, to):
    """To the process group, as a terminal sends it, or to one rank alone."""
    folder = place / f"ended_{code}_{to}"
    process, others = started(place, folder.name)
    sent = time.monotonic()
    os.killpg(process.pid, number) if to == "all" else os.kill(others[to - 1], number)
    _, err = process.communicate(timeout=90)
    assert process.returncode == code and f"resume={folder}" in err and time.monotonic() - sent < 30, err
    assert len(others) == 2 and all(gone(other) for other in others)
    last = losses(folder)
    assert (folder / f"checkpoints/step_{len(last):08d}.pt").exists()


@pytest.mark.slow
@linux
@pytest.mark.parametrize("rank", [1, 2])
def test_a_rank_that_dies_ends_the_run_in_a_line_and_it_goes_on(place, rank):
    folder = place / f"died_{rank}"
    process, others = started(place, folder.name)
    sent = time.monotonic()
    os.kill(others[rank - 1], signal.SIGKILL)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 3 and time.monotonic() - sent < 30
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    told = f"error: rank {rank} died (SIGKILL) (see {folder / 'logs'}); resume with: ddpm-train resume={folder}"
    assert errors == [told] and "Traceback" not in err and all(gone(other) for other in others)
    assert json.loads((folder / "result.json").read_text())["status"] == "failed"
    step = max(int(path.stem[5:]) for path in (folder / "checkpoints").glob("step_*.pt"))
    run("train", f"resume={folder}", f"training.num_steps={step + 2}", cwd=place)
    assert len(losses(folder)) == step + 2


@pytest.mark.slow
@linux
def test_ranks_die_with_the_first(place):
    process, others = started(place, "orphaned")
    process.kill()
    process.communicate()
    assert all(gone(other) for other in others)


@pytest.mark.slow
def test_memory_that_runs_out_on_a_rank_ends_the_run_in_a_line(place, monkeypatch):
    """The second rank gets no memory for its share of a step."""
    faulty = place / "faulty"
    faulty.mkdir()
    (faulty / "sitecustomize.py").write_text(FAULT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(faulty), str(ROOT)]))
    command = [sys.executable, "-m", "ddpm_cli.train", *TINY, *ENDLESS, "devices=3", f"run_dir={place / 'memory'}"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 3 and len(errors) == 1, done.stderr
    assert errors[0].startswith("error: rank 1 failed (out of memory at step 8 with 4 images at once"), errors
    assert "try training.micro_batch_size=2" in errors[0] or "with training.micro_batch_size=2" in errors[0]


# In the second of three ranks the 8th batch fails as torch's own allocator does.
FAULT = """
import sys
if "spawn_main" in " ".join(sys.orig_argv):
    import torch
    from ddpm_cli.system import ranks
    from ddpm_cli.training.step import TrainStep

    gradient = TrainStep.gradient
    def failing(self, state):
        if self.ranks.rank == 1 and state.step == 7:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return gradient(self, state)
    TrainStep.gradient = failing
"""


@pytest.mark.slow
def test_a_sweep_has_ranks_for_each_job_and_a_bad_batch_is_rolled_back_by_all(place):
    sweep = ["training.on_nonfinite=stop,rollback", "training.num_steps=6", "optimizer.lr=1e30"]
    done = run("train", "-m", *TINY, *sweep, "devices=2", "run_dir=sweep", cwd=place, check=False)
    assert done.returncode == 3 and "was not finite at step 2" in done.stderr, done.stderr
    assert done.stderr.count("; back to step 0, and its batch is left out") == 5
    assert [path.parts[-3] for path in place.glob("sweep/*/checkpoints/step_00000006.pt")] == ["1"]


@pytest.mark.slow
def test_ranks_of_torchrun_make_one_run(place, one):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    command = [*torchrun, "-m", "ddpm_cli.train", *TINY, *CHOICES]
    home = place / "torchrun"
    home.mkdir()
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=300)
    folders = list(home.glob("outputs/*/*"))
    assert done.returncode == 0 and len(folders) == 1, done.stderr
    assert done.stdout.splitlines()[-1:] == [str(folders[0])] and done.stdout.count("samples: ") == 1
    close(one, folders[0])
    wrong = subprocess.run([*command, "devices=2"], cwd=home, capture_output=True, text=True, timeout=300)
    assert "error: devices=2: torchrun started 3 ranks; leave devices out" in wrong.stderr


@pytest.mark.slow
def test_ranks_of_srun_make_one_run(place, one):
    """A stand-in for srun: it starts three tasks with the variables that SLURM sets."""
    environ = {"SLURM_JOB_ID": "417", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3", "SLURM_NTASKS": "3"}
    environ |= {"SLURM_STEP_NODELIST": "127.0.0.1"}
    command = [sys.executable, "-m", "ddpm_cli.train", *TINY, *CHOICES, "run_dir=srun"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    tasks = [
        subprocess.Popen(
            command,
            cwd=place,
            env={**os.environ, **environ, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            **pipes,
        )
        for rank in range(3)
    ]
    said = [task.communicate(timeout=300) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0, 0], said
    assert said[0][0].splitlines()[-1] == str(place / "srun") and [out for out, _ in said[1:]] == ["", ""]
    close(one, place / "srun")


@pytest.mark.slow
@linux
def test_torchrun_starts_a_run_again_where_it_was(place):
    """--max-restarts with resume=auto: a rank that is killed costs the steps since the last checkpoint."""
    folder = place / "restarted"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    more = ["training.num_steps=400", f"run_dir={folder}", "resume=auto"]
    command = [*torchrun, "-m", "ddpm_cli.train", *TINY, *ENDLESS, *more]
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(process, folder / "checkpoints/step_00000005.pt")
    os.kill(children_of(process.pid)[1], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and out.splitlines()[-1] == str(folder), err
    assert "resuming" in err and len(losses(folder)) == 400


@pytest.mark.slow
def test_a_budget_is_planned_for_all_ranks(place):
    """Every rank follows the plan: the typed run with the same settings is the same, bit for bit."""
    quick = ["training.sample_every=0", "training.checkpoint_every=1000000"]
    choices = [text for text in CHOICES if not text.startswith(("training.num_steps", "training.checkpoint"))]
    run("train", *TINY, *choices, *quick, "devices=2", "budget=25s", "run_dir=planned", cwd=place)
    config = yaml.safe_load((place / "planned/config.yaml").read_text())
    steps = config["training"]["num_steps"]
    typed = [f"{key}={config[group][name]}" for key, group, name in PLANNED]
    recipe = ["experiment=auto", f"training.num_steps={steps}"]  # which a budget chooses too
    run("train", *TINY, *choices, *quick, "devices=2", *recipe, *typed, "run_dir=typed", cwd=place)
    mine, theirs = weights(place / "planned", steps), weights(place / "typed", steps)
    assert steps >= 20 and all(torch.equal(mine[name], theirs[name]) for name in mine)
