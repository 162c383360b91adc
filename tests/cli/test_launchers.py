"""Sweeps by Hydra's plugins: jobs side by side, on a cluster's stand-in, and a search."""

import csv
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from commands import TINY, run

pytestmark = pytest.mark.slow
SHORT = [*TINY, "training.num_steps=5", "training.sample_every=0"]


def rows_of(sweep):
    with open(sweep / "summary.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=9"],
    ],
    ids=["joblib", "submitit_local"],
)
def test_jobs_side_by_side_end_in_the_sweeps_table_and_its_folder(tmp_path, launcher):
    command = [
        sys.executable,
        "-m",
        "ddpm_cli.train",
        "-m",
        *SHORT,
        *launcher,
        "optimizer.lr=1e-3,1e20",
        "run_dir=sweep",
    ]
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "sweep")  # not what a worker had kept to say
    assert [(row["job"], row["status"], row["optimizer.lr"]) for row in rows_of(tmp_path / "sweep")] == [
        ("0", "done", "0.001"), ("1", "failed", "1e+20"),
    ]  # fmt: skip
    assert done.stderr.splitlines()[-1].startswith("error: 1 of 2 jobs failed: job 1: the loss or its gradient was not")


def test_a_search_draws_its_trials_from_the_experiments_space_and_names_the_best(tmp_path):
    search = ["experiment=digits_search", "hydra.sweeper.n_trials=4", "training.batch_size=8", "run_dir=search"]
    tiny = [text for text in SHORT if not text.startswith("optimizer.warmup")]
    done = run("train", *tiny, *search, cwd=tmp_path)
    rows = rows_of(tmp_path / "search")
    assert [row["status"] for row in rows] == ["done"] * 4 and done.stdout.splitlines()[-1] == str(tmp_path / "search")
    losses = [float(row["loss"]) for row in rows]
    assert losses == sorted(losses) and len({row["optimizer.lr"] for row in rows}) == 4
    best = yaml.safe_load((tmp_path / "search/optimization_results.yaml").read_text())
    assert best["best_value"] == losses[0] and best["best_params"]["optimizer.lr"] == float(rows[0]["optimizer.lr"])
    assert all(1e-4 <= float(row["optimizer.lr"]) <= 2e-2 for row in rows)


def test_a_launcher_for_slurm_where_there_is_none_says_so_in_a_line(tmp_path):
    if shutil.which("srun"):
        pytest.skip("this is a cluster")
    typed = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=1"]
    done = run("train", "-m", *SHORT, *typed, "seed=0,1", cwd=tmp_path, check=False)
    assert done.returncode == 3 and "srun" in done.stderr.splitlines()[-1], done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
