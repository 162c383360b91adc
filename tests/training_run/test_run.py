"""ddpm-train end to end: what a run leaves behind, and that a resumed run is the uninterrupted one, bit for bit."""

import csv
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
from commands import TINY, run, tensors

from ddpm_cli.run_dir import checkpoint
from ddpm_cli.sampling.preview import Preview


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def straight(place):
    """A run of 40 steps at once, with dropout and flips; an epoch is 12.5 steps."""
    done = run(
        "train", *TINY, "training.num_steps=40", "model.dropout=0.2", "dataset.flip=true", "run_dir=straight", cwd=place
    )
    return place / "straight", done


def test_a_run_leaves_what_the_contract_names(straight):
    folder, done = straight
    assert done.stdout.splitlines()[-1] == str(folder)
    names = {p.name for p in folder.iterdir()}
    assert {".hydra", "config.yaml", "train.log", "metrics.jsonl", "tensorboard", "samples", "checkpoints"} <= names
    every = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in every if "loss" in line]
    assert [line["step"] for line in lines] == list(range(5, 41, 5))
    assert {"loss", "lr", "grad_norm", "images_per_second", "memory_gib"} <= set(lines[0])
    (last,) = [line for line in every if "loss" not in line]  # at the end, as heldout_every is more than 40
    assert last["step"] == 40 and {"v_error_train", "v_error_heldout", "v_error_heldout_at_-3"} <= set(last)
    pictures = [f"{kind}_{step:08d}.png" for kind in ("step", "walk") for step in (20, 40)]
    assert sorted(p.name for p in (folder / "samples").iterdir()) == pictures
    assert sorted(p.name for p in (folder / "checkpoints").glob("*.pt"))[-1] == "step_00000040.pt"
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "done" and result["metrics"]["loss"] == lines[-1]["loss"]
    assert {"device", "precision", "torch", "ddpm_cli"} <= set(result["environment"])


def test_a_checkpoint_holds_what_its_type_lists_and_nothing_else(straight):
    content = checkpoint.load(straight[0] / "checkpoints" / "step_00000040.pt")
    progress = content["progress"]
    for held, listed in (
        (content, checkpoint.Content),
        (content["data"], checkpoint.DataContent),
        (progress, checkpoint.Progress),
        (progress["meter"], checkpoint.MeterContent),
    ):
        assert set(held) == set(listed.__annotations__) - {"analytic", "autoencoder"}  # of ddpm-analytic; of latents


def test_tensorboard_holds_scalars_pictures_and_the_configuration(straight):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(straight[0] / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"curves/loss", "optimiser/lr", "curves/v_error_heldout"} <= set(tags["scalars"])
    assert "v_error_by_log_snr/train_+1" in tags["scalars"]
    assert min(tags["scalars"] + tags["images"]) == "curves/loss", "what TensorBoard shows first"
    assert set(tags["images"]) == {"samples/grid", "samples/from_noise_to_image"}
    assert "config/text_summary" in tags["tensors"]


@pytest.mark.parametrize("stop", [10, 13, 20])  # mid-epoch, one past an epoch's end, mid-epoch
def test_stop_and_resume_equal_the_uninterrupted_run_bit_for_bit(place, straight, stop):
    folder = place / f"stopped_{stop}"
    run(
        "train", *TINY, "training.num_steps=40", "model.dropout=0.2", "dataset.flip=true", f"run_dir={folder}",
        f"training.stop_at={stop}", cwd=place,
    )  # fmt: skip
    done = run("train", f"resume={folder}", cwd=place)
    assert done.stdout.splitlines()[-1] == str(folder)
    files = [path / "checkpoints" / "step_00000040.pt" for path in (straight[0], folder)]
    first, second = (tensors(torch.load(file, weights_only=True)) for file in files)
    assert first.keys() == second.keys() and len(first) > 100
    assert all(torch.equal(first[name], second[name]) for name in first)
    images = [(path / "samples" / "step_00000040.png").read_bytes() for path in (straight[0], folder)]
    assert images[0] == images[1]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == sorted(set(steps)) and steps[-1] == 40
    assert lines[-1] == json.loads((straight[0] / "metrics.jsonl").read_text().splitlines()[-1])  # on fixed images


def test_a_resumed_run_keeps_its_number_of_threads_unless_another_is_typed(place):
    run("train", *TINY, "training.num_steps=4", "training.stop_at=2", "threads=2", "run_dir=threads", cwd=place)
    run("train", "resume=threads", "training.stop_at=3", cwd=place)

    def used(step):
        content = torch.load(place / f"threads/checkpoints/step_{step:08d}.pt", weights_only=True)
        return content["threads"], json.loads((place / "threads/result.json").read_text())["environment"]["threads"]

    assert used(3) == (2, 2)
    run("train", "resume=threads", "threads=1", cwd=place)
    assert used(4) == (1, 1)


def test_a_preview_without_memory_says_what_to_type_and_the_run_goes_on_as_if_nothing_had_been(
    place, straight, monkeypatch
):
    def full(self, denoiser):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    folder = place / "no_memory"
    args = [*TINY, "training.num_steps=40", "model.dropout=0.2", "dataset.flip=true", f"run_dir={folder}"]
    with monkeypatch.context() as patch:
        patch.setattr(Preview, "__call__", full)
        failed = run("train", *args, "training.checkpoint_every=100", cwd=place, check=False)
    assert failed.returncode == 3
    last = failed.stderr.splitlines()[-1]
    assert f"resume={folder} training.num_samples=2 or training.sample_every=0" in last and "step 20" in last
    assert [path.name for path in (folder / "checkpoints").glob("*.pt")] == ["step_00000020.pt"]
    run("train", f"resume={folder}", cwd=place)
    files = [path / "checkpoints" / "step_00000040.pt" for path in (straight[0], folder)]
    first, second = (tensors(torch.load(file, weights_only=True)) for file in files)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for step in (20, 40):
        images = [(path / "samples" / f"step_{step:08d}.png").read_bytes() for path in (straight[0], folder)]
        assert images[0] == images[1]


def test_resume_takes_what_is_typed_and_refuses_another_network(place, straight):
    folder = straight[0]
    refused = run("train", f"resume={folder}", "model.channels=16", cwd=place, check=False)
    assert refused.returncode == 2 and "\nerror: model.channels cannot change on resume" in refused.stderr
    longer = run("train", f"resume={folder}", "training.num_steps=45", cwd=place)
    assert longer.returncode == 0 and (folder / "checkpoints" / "step_00000045.pt").exists()


def test_a_run_that_is_past_its_end_says_that_nothing_is_left_and_what_was_changed(place):
    run("train", *TINY, "training.num_steps=10", "training.sample_every=0", "run_dir=past", cwd=place)
    done = run("train", "resume=past", "training.num_steps=7", "seed=5", "training.log_every=5", cwd=place)
    assert "changed since the checkpoint: training.num_steps 10 -> 7, seed 0 -> 5\n" in done.stderr
    (told,) = [line for line in done.stderr.splitlines() if "nothing is left to do" in line]
    assert "at step 10 of 7" in told and "training.num_steps=20" in told and "steps 10 to 7" not in done.stderr
    assert done.stdout.splitlines()[-1] == str(place / "past")


def test_a_folder_that_holds_a_run_is_refused(place, straight):
    refused = run("train", *TINY, f"run_dir={straight[0]}", cwd=place, check=False)
    assert refused.returncode == 2 and "resume=" in refused.stderr and "Traceback" not in refused.stderr


def test_init_starts_from_the_weights_of_another_run(place, straight):
    run(
        "train", *TINY, "training.num_steps=1", f"init={straight[0]}", "optimizer.lr=1e-30", "run_dir=inited", cwd=place
    )
    source = sorted((straight[0] / "checkpoints").glob("*.pt"))[-1]
    old, new = (
        torch.load(f, weights_only=True) for f in (source, place / "inited" / "checkpoints" / "step_00000001.pt")
    )
    for name, tensor in old["emas"]["ema"].items():
        torch.testing.assert_close(tensor, new["network"][name], rtol=0, atol=1e-12)


def test_a_run_refused_after_its_folder_was_taken_leaves_the_folder_to_the_next(place, straight):
    args = [*TINY, "training.num_steps=1", "training.sample_every=0", "run_dir=withdrawn"]
    done = run("train", *args, f"init={straight[0]}", "model.channels=16", cwd=place, check=False)
    assert done.returncode == 2 and not (place / "withdrawn").exists(), done.stderr
    assert run("train", *args, cwd=place).stdout.splitlines()[-1] == str(place / "withdrawn")


def test_a_sweep_has_a_folder_a_job_and_one_summary(place):
    done = run(
        "train", "-m", *TINY, "schedule=linear,cosine", "optimizer.lr=1e-4,1e20", "training.num_steps=10",
        "run_dir=sweep", "training.sample_every=0", "report=true", cwd=place, check=False,
    )  # fmt: skip
    assert done.returncode == 3 and done.stderr.count("error: ") >= 2, done.stderr
    assert done.stdout.splitlines()[-1] == str(place / "sweep")  # not that of the last job
    with open(place / "sweep" / "summary.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [r["status"] for r in rows] == ["done", "done", "failed", "failed"]
    assert float(rows[0]["loss"]) < float(rows[1]["loss"]) and not rows[2]["loss"]
    by_job = {r["job"]: (r["schedule"], r["optimizer.lr"]) for r in rows}
    assert [by_job[job] for job in "0123"] == [
        ("linear", "0.0001"), ("linear", "1e+20"), ("cosine", "0.0001"), ("cosine", "1e+20"),
    ]  # fmt: skip
    assert list(rows[0])[:6] == ["job", "name", "status", "schedule", "optimizer.lr", "loss"]
    assert "4 runs: 2 done, 2 failed" in (place / "sweep/report.html").read_text(encoding="utf-8")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

    events = EventAccumulator(str(place / "sweep" / "1" / "tensorboard"))  # it failed: what it was given is there
    events.Reload()
    assert "_hparams_/experiment" not in events.summary_metadata
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    given = parse_session_start_info_plugin_data(content).hparams
    assert (given["schedule"].string_value, given["optimizer.lr"].number_value) == ("linear", 1e20)
    assert given["training.batch_size"].number_value == 8 and given["model"].string_value == "unet_small"


def test_a_report_is_written_at_the_end_and_never_ends_the_run(place, monkeypatch):
    args = [*TINY, "training.num_steps=10", "training.sample_every=0", "report=true"]
    done = run("train", *args, "run_dir=reported", cwd=place)
    assert done.stdout.splitlines()[-1] == str(place / "reported")
    assert f"report: {place / 'reported/report.html'}" in done.stderr
    assert "1 run, done" in (place / "reported/report.html").read_text(encoding="utf-8")

    def broken(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("ddpm_cli.report_page.run.page", broken)
    done = run("train", *args, "run_dir=unreported", cwd=place)
    assert "could not write the report of" in done.stderr and "a bug" in done.stderr
    assert json.loads((place / "unreported/result.json").read_text())["status"] == "done"


ENDLESS = [*TINY, "training.num_steps=100000", "training.sample_every=0", "training.log_every=2"]


def begun(folder, cwd, **how):
    """A process that trains, and has written its first figures."""
    argv = [sys.executable, "-m", "ddpm_cli.train", *ENDLESS, f"run_dir={folder}"]
    process = subprocess.Popen(
        argv, cwd=cwd, **{"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, **how}
    )
    deadline = time.monotonic() + 300  # a busy machine takes a minute to import torch
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    return process


def is_saved(folder):
    """Whether the run was stopped with a checkpoint and without litter."""
    files = {path.suffix for path in (folder / "checkpoints").iterdir()}
    return files == {".pt"} and json.loads((folder / "result.json").read_text())["status"] == "interrupted"


# SIGINT, a hangup and SIGTERM, one process each; any of them in every phase of a run: goal R6 of tests/reliability.


def test_an_interrupt_saves_a_checkpoint_and_says_how_to_go_on(place):
    folder = place / "interrupted"
    process = begun(folder, place)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and f"resume={folder}" in err
    assert is_saved(folder)


@pytest.mark.slow
def test_a_closed_terminal_saves_a_checkpoint(place):
    terminal, end = pty.openpty()
    folder = place / "closed"

    def take():  # the terminal as its own, as a shell's child has it
        os.setsid()
        fcntl.ioctl(end, termios.TIOCSCTTY, 0)

    process = begun(folder, place, stdin=end, stdout=end, stderr=end, preexec_fn=take)
    os.close(end)
    os.close(terminal)
    assert process.wait(timeout=60) == 129
    assert is_saved(folder)


@pytest.mark.slow
def test_a_hangup_that_is_ignored_stays_ignored_and_sigterm_saves_a_checkpoint(place):
    folder = place / "nohup"
    process = begun(folder, place, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    before, deadline = (folder / "metrics.jsonl").stat().st_size, time.monotonic() + 60
    while (folder / "metrics.jsonl").stat().st_size < before + 1000:  # several lines: it would have stopped by then
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and f"resume={folder}" in err
    assert is_saved(folder)


def test_dry_run_says_the_papers_recipe_and_writes_nothing(tmp_path):
    done = run("train", "dataset=cifar10", "dry_run=true", cwd=tmp_path)
    plan = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    expected = {
        "parameters": "35746307", "schedule": "linear", "num_timesteps": "1000", "optimizer": "Adam", "lr": "0.0002",
        "warmup_steps": "5000", "batch_size": "128", "dropout": "0.1", "max_grad_norm": "1.0", "ema_decay": "0.9999",
        "flip": "True", "num_steps": "800000", "prediction": "Epsilon", "variance": "FixedLarge",
        "classes": "unconditional",
    }  # fmt: skip
    assert {key: plan[key] for key in expected} == expected
    assert not list(Path(tmp_path).iterdir())


def test_cifar10_without_data_or_network_says_what_to_put_where(tmp_path):
    done = run(
        "train",
        "dataset=cifar10",
        "dataset.download=false",
        "model=cnn",
        "training.num_steps=1",
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode in (2, 3) and "cifar-10-python.tar.gz" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.split("error: ")[1].strip().splitlines()) <= 3


@pytest.mark.parametrize("folder", ["new", "tried"])
def test_a_damaged_file_to_resume_leaves_no_new_folder_and_an_old_one_as_it_was(tmp_path, folder):
    (tmp_path / "bad.pt").write_bytes(b"x" * 3000)
    (tmp_path / "tried/.hydra").mkdir(parents=True)
    for name in ("config.yaml", "train.log", ".lock"):  # of a start that was killed before its first checkpoint
        (tmp_path / "tried" / name).write_text(name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = run("train", *TINY, "resume=bad.pt", f"run_dir={folder}", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "is damaged" in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "new").exists()


def test_the_same_command_goes_on_where_classes_were_counted_in_a_folder(place):
    from PIL import Image

    for number in range(12):
        path = place / f"photos/{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number * 20).save(path)
    words = [*TINY[3:], "dataset=image_folder", "dataset.root=photos", "dataset.image_size=8", "dataset.channels=1"]
    command = [*words, "run_dir=counted", "resume=auto"]
    run("train", *command, "training.num_steps=10", "training.stop_at=5", cwd=place)
    done = run("train", *command, "training.num_steps=10", cwd=place)
    assert "steps 5 to 10" in done.stderr
    refused = run("train", *command, "dataset.num_classes=0", cwd=place, check=False)
    assert refused.returncode == 2 and "cannot change on resume" in refused.stderr
