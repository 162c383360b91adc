"""Trackers: what they are told, that a run neither waits for them nor ends by them, and W&B and MLflow themselves."""

import json
import struct
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from commands import TINY, run, tensors

from ddpm_cli.run_dir import checkpoint
from ddpm_cli.training.trackers import aside
from ddpm_cli.training.trackers.aside import Aside, Ledger
from ddpm_cli.training.trackers.base import Tracker, Trackers
from ddpm_cli.training_run import tracking

RUN = [*TINY, "training.num_steps=20", "training.heldout_every=10"]


class Fake(Tracker):
    """Remembers what it is told."""

    def __init__(self):
        self.told = []

    def begin(self, settings, config, step):
        self.told.append(("begin", settings, step))

    def scalars(self, values, step):
        self.told.append(("scalars", dict(values), step))

    def picture(self, tag, picture, step):
        self.told.append(("picture", tag, step))

    def rewind(self, step):
        self.told.append(("rewind", step))

    def end(self, status, figures):
        self.told.append(("end", status, dict(figures)))


class Failing(Fake):
    def scalars(self, values, step):
        raise ConnectionError("no network")


@pytest.fixture
def choose(monkeypatch):
    """Puts a tracker in the place of W&B, whose package need not be there."""

    def chosen(make):
        monkeypatch.setattr("ddpm_cli.cli.preflight.check_trackers", lambda config: None)
        monkeypatch.setitem(tracking._MADE, "wandb", make)

    return chosen


def weights(folder, step=20):
    return tensors(checkpoint.load(folder / "checkpoints" / f"step_{step:08d}.pt"))


def test_every_tracker_is_told_what_tensorboard_is(tmp_path, choose):
    fake = Fake()
    choose(lambda *_: fake)
    run("train", *RUN, "trackers=[tensorboard,wandb]", "run_dir=run", cwd=tmp_path)
    (begin,) = [call for call in fake.told if call[0] == "begin"]
    assert begin[1]["optimizer.lr"] == 1e-3 and begin[1]["dataset"] == "shapes" and begin[2] == 0
    assert not [key for key in begin[1] if key.startswith("track")]
    losses = {step: values["curves/loss"] for _, values, step in fake.told[1:-1] if "curves/loss" in values}
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert losses == {line["step"]: line["loss"] for line in lines if "loss" in line} and list(losses) == [
        5,
        10,
        15,
        20,
    ]
    assert any("curves/v_error_heldout" in values for kind, values, *_ in fake.told if kind == "scalars")
    assert ("picture", "samples/grid", 20) in fake.told
    assert fake.told[-1][:2] == ("end", "done") and fake.told[-1][2]["loss"] == losses[20]
    assert any((tmp_path / "run/tensorboard").iterdir())


def test_a_run_that_stops_is_interrupted_and_one_that_fails_has_failed(tmp_path, choose, monkeypatch):
    fake = Fake()
    choose(lambda *_: fake)
    run("train", *RUN, "trackers=[wandb]", "training.stop_at=10", "run_dir=run", cwd=tmp_path)
    assert fake.told[-1][:2] == ("end", "interrupted") and not (tmp_path / "run/tensorboard").exists()
    run(
        "train", *RUN, "trackers=[wandb]", "optimizer.lr=1e30", "training.max_grad_norm=null", cwd=tmp_path, check=False
    )
    assert fake.told[-1][:2] == ("end", "failed")


def test_a_tracker_that_fails_is_told_once_and_changes_nothing_of_the_run(tmp_path, choose):
    run("train", *RUN, "run_dir=plain", cwd=tmp_path)
    choose(lambda *_: Aside("wandb", Failing))
    for stop in (10, 20):
        again = [*RUN, "trackers=[tensorboard,wandb]", f"training.stop_at={stop}", "run_dir=failing", "resume=auto"]
        done = run("train", *again, cwd=tmp_path)
    assert done.stderr.count("trackers: wandb failed and is left out (ConnectionError: no network)") == 1
    choose(lambda *_: Failing())
    done = run("train", *RUN, "trackers=[]", "run_dir=none", cwd=tmp_path)
    plain = weights(tmp_path / "plain")
    for name in ("failing", "none"):
        other = weights(tmp_path / name)
        assert all(torch.equal(plain[key], other[key]) for key in plain if "/meter" not in key)


def test_no_call_waits_for_a_tracker_and_the_end_waits_no_longer_than_its_patience(monkeypatch, caplog):
    monkeypatch.setattr(aside, "PATIENCE", 0.1)
    monkeypatch.setattr(aside, "_MOST_WAITING", 4)
    go_on = threading.Event()
    slow = Aside("slow", lambda: go_on.wait() and Fake())
    for step in range(10):
        slow.scalars({"a": 1.0}, step)
    slow.end("done", {})
    go_on.set()
    told = [record.message for record in caplog.records]
    assert told == [
        "trackers: slow is slower than the run; what it cannot take is left out",
        "trackers: slow has not taken everything within 0 seconds",
    ]


def test_of_several_trackers_one_that_raises_is_left_out(caplog):
    fake = Fake()
    both = Trackers({"bad": Failing(), "good": fake})
    for step in (1, 2):
        both.scalars({"a": 1.0}, step)
    both.end("done", {})
    assert [call[0] for call in fake.told] == ["scalars", "scalars", "end"] and len(caplog.records) == 1


def test_a_ledger_knows_what_was_told_before_the_run_was_killed(tmp_path):
    ledger = Ledger(tmp_path / "trackers/a.json")
    ledger.name("42")
    ledger.told(["loss", "fid"], 10)
    ledger.told(["loss"], 15)
    again = Ledger(ledger.path)
    assert again.id == "42" and again.news(["loss", "fid", "kid"], 12) == ["fid", "kid"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_extra_is_a_line_with_what_to_type_before_anything_begins(tmp_path, name, monkeypatch):
    monkeypatch.setattr("ddpm_cli.config.extras.find_spec", lambda name: None)
    done = run("train", *RUN, f"trackers=[tensorboard,{name}]", "run_dir=run", cwd=tmp_path, check=False)
    assert done.returncode == 2 and list(tmp_path.iterdir()) == []
    assert done.stderr == (
        f'error: trackers: {name} is not installed: pip install "ddpm_cli[{name}]", or leave it out\n'
    )


@pytest.mark.parametrize(
    "setting, told",
    [
        ("trackers=[tensorboard,tensorboard]", "tensorboard is named twice"),
        ("trackers=[tensorbord]", "trackers must be a list of values, each one of tensorboard, wandb, mlflow"),
        ("tracking.mode=away", "tracking.mode must be one of online, offline"),
    ],
)
def test_a_wrong_setting_is_refused(tmp_path, setting, told):
    done = run("train", *RUN, setting, cwd=tmp_path, check=False)
    assert done.returncode == 2 and told in done.stderr


def trained_in_two_parts(tmp_path, name, *settings):
    """A run that was stopped at step 10, had gone on to 15 when it was killed, and went on from 10 to the end."""
    run("train", *RUN, f"trackers=[{name}]", *settings, "training.stop_at=10", "run_dir=run", cwd=tmp_path)
    ledger = json.loads((tmp_path / f"run/trackers/{name}.json").read_text())
    run("train", "resume=run", "training.stop_at=15", cwd=tmp_path)
    (tmp_path / "run/checkpoints/step_00000015.pt").unlink()
    done = run("train", "resume=run", cwd=tmp_path)
    assert (
        "left out" not in done.stderr
        and json.loads((tmp_path / f"run/trackers/{name}.json").read_text())["id"] == ledger["id"]
    )
    return ledger["id"]


def records(file):
    """Of W&B's file, a log as LevelDB has it: blocks of 32 KiB with pieces of a checksum, a length and a type each."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := -place % 32768) and left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # all of it, or its last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_without_a_network_has_one_run_with_each_step_once(tmp_path, monkeypatch):
    run_id = trained_in_two_parts(tmp_path, "wandb", "tracking.mode=offline", "tracking.project=mine")
    steps, config, summary, pictures = [], {}, {}, []
    files = sorted((tmp_path / "run/trackers/wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert len(files) == 3
    for file in files:
        for record in records(file):
            logged = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            steps += [int(logged["_step"])] if "curves/loss" in logged else []
            pictures += [any(key.startswith("samples/grid") for key in logged)]
            config |= {item.key: item.value_json for item in [*record.config.update, *record.run.config.update]}
            summary |= {item.key: item.value_json for item in record.summary.update}
            assert record.run.project in ("", "mine")
    assert steps == [5, 10, 15, 20] and sum(pictures) == 1
    assert config["optimizer.lr"] == "0.001" and summary["status"] == '"done"' and "final/loss" in summary


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
@pytest.mark.parametrize("kind", ["folder", "database"])
def test_mlflow_has_one_run_with_each_step_once(tmp_path, kind, monkeypatch):
    import sqlalchemy
    from mlflow import MlflowClient

    if kind == "database" and int(sqlalchemy.__version__[0]) < 2:
        pytest.skip("this SQLAlchemy is too old for mlflow")
    uri = {"folder": str(tmp_path / "store"), "database": f"sqlite:///{tmp_path / 'store.db'}"}[kind]
    run_id = trained_in_two_parts(tmp_path, "mlflow", f"tracking.uri={uri}", "tracking.project=mine", "name=first")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(tracking_uri=uri if kind == "database" else Path(uri).as_uri())
    experiment = client.get_experiment_by_name("mine").experiment_id
    (found,) = client.search_runs([experiment])
    assert found.info.run_id == run_id and found.info.status == "FINISHED" and found.info.run_name == "first"
    assert [metric.step for metric in client.get_metric_history(run_id, "curves/loss")] == [5, 10, 15, 20]
    assert found.data.params["optimizer.lr"] == "0.001" and "final/loss" in found.data.metrics
    assert {"config", "images"} <= {artifact.path for artifact in client.list_artifacts(run_id)}
