"""Folders of runs read back: finished, cut off, refused, and what lies among them."""

import subprocess
import sys

import pytest
from results_folders import folder_of

from ddpm_cli.results.runs import read, read_run, value_of
from ddpm_cli.system.lock import lock


def test_a_run_is_read_whole(tmp_path):
    log = [{"step": 5, "loss": 2.0, "lr": 1}, {"step": 10, "loss": 1.0, "lr": 1}, {"step": 10, "eval/fid": 3.5}]
    metrics = {"loss": 1.0, "fid": 3.5, "fid_low": 3.0, "fid_high": 4.0}
    run = read_run(
        folder_of(
            tmp_path / "a", ["schedule=linear", "seed=3", "optimizer.lr=2e-3", "run_dir=a", "name=first"],
            choices={"schedule": "linear", "model": "cnn"}, config={"name": "first", "training": {"batch_size": 8}},
            log=log, status="done", metrics=metrics, seconds=2.5, step=10,
        )
    )  # fmt: skip
    assert (run.name, run.status, run.metrics, run.step) == ("first", "done", metrics, 10)
    assert run.settings == {"schedule": "linear", "seed": 3, "optimizer.lr": 2e-3}
    keys = ["seed", "model", "training.batch_size", "training.lost", "training"]
    assert [run.setting(key) for key in keys] == [3, "cnn", 8, None, '{"batch_size":8}']
    assert run.choices == {"schedule": "linear", "model": "cnn"}  # Hydra's own are not the run's
    assert run.curves == {"loss": [(5, 2.0), (10, 1.0)], "lr": [(5, 1), (10, 1)], "eval/fid": [(10, 3.5)]}


def test_a_run_that_was_cut_off_has_what_it_logged_last(tmp_path):
    run = folder_of(tmp_path / "a", log=[{"step": 5, "loss": 2.0}, {"step": 6, "eval/fid": 9}], status="running")
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 10, "lo')
    with open(run / ".lock", "wb") as held:
        lock(held)
        assert read_run(run).status == "running"
    assert read_run(run).status == "interrupted"
    assert read_run(run).metrics == {"loss": 2.0, "eval/fid": 9}


@pytest.mark.parametrize("text", ["", "{", "[1]", "\0", "'", "a: b: c"])
def test_files_that_are_not_what_they_should_be_count_as_empty(tmp_path, text):
    folder = folder_of(tmp_path / "a")
    for name in ("config.yaml", "result.json", "metrics.jsonl", ".hydra/hydra.yaml", ".hydra/overrides.yaml"):
        (folder / name).write_text(text, encoding="utf-8")
    run = read_run(folder)
    assert (run.name, run.status, run.overrides, run.settings, run.metrics, run.curves) == (
        "a",
        "unknown",
        [],
        {},
        {},
        {},
    )


def test_all_runs_below_are_found_once_and_in_order(tmp_path):
    outputs, sweep = tmp_path / "outputs", tmp_path / "outputs/multirun/2026-01-01/10-00-00"
    for job in (10, 2, 1):
        folder_of(sweep / str(job))
    single = folder_of(outputs / "2026-01-02/10-00-00")
    for inner in ("checkpoints", "tensorboard", "samples"):
        (single / inner).mkdir()
        (single / inner / "result.json").write_text("{}")
    jobs = [sweep / "1", sweep / "2", sweep / "10"]
    assert [run.path for run in read([outputs, single, sweep / "2"])] == [single, *jobs]
    assert [run.path for run in read([sweep])] == jobs
    assert read([tmp_path / "nothing", outputs / "2026-01-01"]) == []


@pytest.mark.parametrize(
    ("text", "value"),
    {"1e-4": 1e-4, "12": 12, "true": True, "null": None, "'a, b'": "a, b", "[1, 2]": "[1,2]", "1_0": 10.0}.items(),
)
def test_numbers_are_read_as_numbers(text, value):
    assert value_of(text) == value and type(value_of(text)) is type(value)


def test_reading_imports_no_torch():
    code = "import sys, ddpm_cli.results.runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
