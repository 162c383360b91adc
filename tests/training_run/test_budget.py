"""budget=10m: durations, what fits into one, and that the run it makes is the run that could have been typed."""

import inspect
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from commands import TINY, run, tensors

from ddpm_cli.cli import main as cli
from ddpm_cli.config.context import Context
from ddpm_cli.config.durations import seconds_of
from ddpm_cli.run_dir import checkpoint
from ddpm_cli.sampling import preview
from ddpm_cli.system.launch_env import command_began
from ddpm_cli.training.step import TrainStep
from ddpm_cli.training_run import budget
from ddpm_cli.training_run.budget import LEAST_STEPS, Speed, adapted, fitting, too_short
from ddpm_cli.training_run.probe import per_call

TRAINING = {
    "num_steps": 800_000, "log_every": 50, "sample_every": 10_000, "checkpoint_every": 10_000, "stop_at": None,
}  # fmt: skip
CIFAR10 = {
    "budget": "10m",
    "training": {**TRAINING, "num_steps": 2000},
    "optimizer": {"warmup_steps": 5000, "decay": "none", "lr": 2e-4},
    "ema": {"decay": 0.9999, "warmup": True},
}
QUICK = Speed(step=0.1, preview=2.0, checkpoint=0.5)
CADENCES = ("log_every", "sample_every", "checkpoint_every")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("budget")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other on a shared machine make every duration a matter of luck."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("1h0m5s", 3605), ("1.5h", 5400), ("0.5s", 0.5)],
)
def test_a_duration_is_read_as_typed(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "10", 10, 10.0, None, True, "0s", "m", "-5m", "10 m", "5m3h", "1d", "10min", "1e9h"]
)
def test_what_has_no_unit_or_no_sense_is_no_duration(text):
    with pytest.raises(ValueError, match="90s, 10m"):
        seconds_of(text)


@pytest.mark.parametrize("room", [5.0, 60.0, 600.0, 86_400.0])
@pytest.mark.parametrize("speed", [QUICK, Speed(0.001, 0.05, 0.01), Speed(0.1, 0.0, 0.01)])
def test_the_steps_and_all_that_goes_with_them_fill_the_time(room, speed):
    chosen = fitting(TRAINING, (), speed, room)
    assert 0.97 * room - speed.preview - speed.checkpoint - speed.step <= speed.of(chosen) <= room
    typed = fitting(TRAINING, [f"training.{key}" for key in CADENCES], speed, room)
    assert speed.of(typed) <= room < speed.of({**typed, "num_steps": typed["num_steps"] + 1})


def test_cadences_suit_the_run_unless_they_were_typed():
    short = fitting(TRAINING, (), QUICK, 600.0)
    steps = short["num_steps"]
    assert 5800 < steps < 6000 and short["log_every"] == 50
    assert short["sample_every"] == short["checkpoint_every"] == -(-steps // 4)
    busy = fitting({**TRAINING, "sample_every": 10, "checkpoint_every": 10}, (), QUICK, 600.0)
    assert busy["num_steps"] / busy["sample_every"] * 2.0 <= 0.05 * 600
    assert busy["num_steps"] / busy["checkpoint_every"] * 0.5 <= 0.02 * 600
    assert fitting({**TRAINING, "sample_every": 0}, (), QUICK, 600.0)["sample_every"] == 0
    assert fitting(TRAINING, (), replace(QUICK, preview=200.0), 600.0)["sample_every"] == 0
    kept = fitting({**TRAINING, "sample_every": 10}, ["training.sample_every"], QUICK, 600.0)
    assert kept["sample_every"] == 10 and kept["num_steps"] < 2000


def test_a_time_that_is_too_short_is_told_with_one_that_would_do():
    for speed in (QUICK, replace(QUICK, step=30.0)):
        chosen = fitting(TRAINING, (), speed, 2.0)
        assert chosen["num_steps"] < LEAST_STEPS
        told = str(too_short({"budget": "9s"}, chosen, speed, spent=7.0))
        enough = seconds_of(told.partition("Set budget=")[2].split()[0])
        assert fitting(TRAINING, (), speed, enough - 7.0)["num_steps"] >= LEAST_STEPS


def test_warm_up_decay_and_averaging_fit_the_steps_unless_they_were_typed():
    fitted = adapted(CIFAR10, ())
    assert fitted["optimizer"] == {"warmup_steps": 200, "decay": "cosine", "lr": 2e-4}
    assert fitted["ema"] == {"decay": 0.995, "warmup": True}  # 200 steps
    typed = ["optimizer.warmup_steps", "optimizer.decay", "ema.decay"]
    assert adapted(CIFAR10, typed) == CIFAR10
    long = {
        **CIFAR10,
        "training": {**TRAINING, "num_steps": 10**6},
        "optimizer": {"warmup_steps": 5, "decay": "linear"},
    }
    assert adapted(long, ()) == long


def test_a_call_is_timed_without_its_first_time_and_without_a_hiccup():
    clock, calls = [0.0], [0]

    def work():
        calls[0] += 1
        clock[0] += 60.0 if calls[0] == 1 else 9.0 if calls[0] == 20 else 0.1

    assert per_call(work, lambda: clock[0], 5.0, 10.0) == pytest.approx(0.1)
    assert 40 <= calls[0] <= 60
    assert per_call(work, lambda: clock[0], 5.0, 0.05) == pytest.approx(0.1)  # too long to be repeated


def test_a_command_began_with_its_process_and_later_ones_when_they_are_called():
    before = time.monotonic()
    assert before <= command_began() <= time.monotonic()
    code = (
        "import time, ddpm_cli.system.launch_env as env; time.sleep(0.5); print(time.monotonic() - env.command_began())"
    )
    age = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0.5 <= age < 60


def test_a_typed_dictionary_types_its_keys():
    keys = Context(None, ["training={num_steps: 9}", "seed=1"]).typed_keys
    assert keys == ["training", "training.num_steps", "seed"]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("budget=600", "budget must be a time with its unit, such as 90s, 10m"),
        ("budget=10m training.num_steps=500", "budget=10m sets training.num_steps: type one of the two"),
        ("budget=10m training={num_steps:500}", "type one of the two"),
        ("budget=10m -m training.num_steps=500,600", "type one of the two"),
        ("budget=10m,20 -m", "budget must be a time with its unit"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(place, argv, told):
    done = run("train", *argv.split(), cwd=place, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and told in done.stderr, done.stderr


def test_a_dry_run_says_roughly_what_will_fit(place):
    lines = run("train", "budget=10m", "dry_run=true", "training.stop_at=5000", cwd=place).stdout.splitlines()
    assert "budget: 600 s" in lines
    told = [line for line in lines if re.fullmatch(r"num_steps: about [\d,]+, measured when the run starts", line)]
    assert len(told) == 1 and any(re.fullmatch(r"images_seen: about [\d,]+", line) for line in lines), lines


def test_too_short_a_budget_is_refused_and_leaves_the_folder_to_another_run(place):
    done = run("train", *TINY, "budget=0.6s", "run_dir=short", cwd=place, check=False)
    assert done.returncode == 2 and "is too short" in done.stderr and "Set budget=" in done.stderr, done.stderr
    assert not (place / "short" / "checkpoints").exists()


def test_the_run_of_a_budget_is_the_typed_one_bit_for_bit_also_when_it_is_resumed(place, monkeypatch):
    """With all that has state: dropout, flips, learned weighting and times, averages that do not warm up."""
    measure = budget.measured
    monkeypatch.setattr(budget, "_MOST", 0.3)
    # Measured as ever; but how many steps come of it is not left to the machine.
    monkeypatch.setattr(budget, "measured", lambda *arguments: measure(*arguments) and Speed(100.0, 5.0, 1.0))
    stateful = "model.dropout=0.2 dataset.flip=true weighting=uncertainty timesteps=loss_second_moment".split()
    line = [*TINY, *stateful, "timesteps.history=2", "ema.warmup=false"]
    begun = run("train", *line, "budget=1h", "training.stop_at=15", "run_dir=fitted", cwd=place)
    config = yaml.safe_load((place / "fitted/config.yaml").read_text())
    steps = config["training"]["num_steps"]
    typed = begun.stderr.partition("as if typed: ")[2].splitlines()[0].split()
    assert 30 <= steps <= 36 and f"training.num_steps={steps}" in typed
    assert not list((place / "fitted/checkpoints").glob(".*"))

    refused = run("train", "resume=fitted", "budget=9s", cwd=place, check=False)
    assert refused.returncode == 2 and "a budget is for the beginning of a run" in refused.stderr
    resumed = run("train", *line, "budget=1h", "resume=auto", "run_dir=fitted", cwd=place)  # as a requeued job
    assert "a step takes" not in resumed.stderr and f"to {steps}" in resumed.stderr

    run("train", *line, *typed, "run_dir=typed", cwd=place)
    name = f"checkpoints/step_{steps:08d}.pt"
    first, second = (torch.load(place / folder / name, weights_only=True) for folder in ("typed", "fitted"))
    assert first["config"]["training"] == second["config"]["training"]
    assert first["config"]["ema"] == second["config"]["ema"]
    first, second = tensors(first), tensors(second)
    assert first.keys() == second.keys() and len(first) > 100
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


@pytest.mark.slow
def test_a_run_ends_in_its_time(place, monkeypatch):
    """In seconds of the processor, which other processes do not stretch."""
    cadence = ["training.sample_every=50", "training.checkpoint_every=25"]
    # What a process does but once (imports, the first optimiser, the first file) is not what is timed here.
    run("train", *TINY, *cadence, "training.num_steps=50", "run_dir=warm", cwd=place)
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=time.process_time))
    monkeypatch.setattr(cli, "command_began", time.process_time)
    began = time.process_time()
    done = run("train", *TINY, *cadence, "sampler.num_steps=20", "budget=10s", "run_dir=timed", cwd=place)
    assert 5.0 < time.process_time() - began < 12.0, done.stderr  # the speed of a shared processor varies


class Clock:
    """Time that passes as the work says, whatever else the machine does."""

    def __init__(self):
        self.now = 0.0

    def costs(self, monkeypatch, owner, name, seconds):
        """From here on each call of owner.name, or each item of what it yields, takes so long."""
        real = getattr(owner, name)

        def call(*args, **kwargs):
            self.now += seconds
            return real(*args, **kwargs)

        def walk(*args, **kwargs):
            for step in real(*args, **kwargs):
                self.now += seconds
                yield step

        monkeypatch.setattr(owner, name, walk if inspect.isgeneratorfunction(real) or name == "walk" else call)


def test_a_command_ends_within_a_tenth_of_its_time(place, monkeypatch):
    """From the start of the process to its end, where every step, preview and checkpoint takes what it was measured to
    take. How true that is of a machine which others share is not this program's affair."""
    clock = Clock()
    clock.costs(monkeypatch, TrainStep, "__call__", 0.5)
    clock.costs(monkeypatch, preview, "walk", 0.05)
    clock.costs(monkeypatch, checkpoint, "save", 0.5)
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(cli, "command_began", lambda: -6.0)  # imports and data took so long
    done = run("train", *TINY, "budget=1m", "run_dir=a_minute", cwd=place)
    result = json.loads((place / "a_minute/result.json").read_text())
    assert result["status"] == "done", done.stderr
    assert 54 < clock.now + 6.0 < 60, done.stderr
