"""Runs side by side: what differs, what is best, and how it is written down."""

import csv
import io
import json

import pytest
from results_folders import folder_of

from ddpm_cli.results.hparams import hparams
from ddpm_cli.results.runs import read
from ddpm_cli.results.table import compared, markdown, write_summary


@pytest.fixture
def sweep(tmp_path):
    """Four jobs: two done, one failed at a loss that would win, one refused; their settings beside common ones."""
    schedules, rates = ["linear", "cosine"], ["1e-4", "0.0001", "2e-4", "3e-4"]
    ends = [
        {"status": "done", "metrics": {"loss": 0.25, "lr": 1e-4, "loss_q1": 0.3}},
        {"status": "done", "metrics": {"lr": 1e-4, "loss": 0.123456, "loss_q1": 0.1}},
        {"status": "failed", "metrics": {"loss": 0.01}, "error": "the loss | its gradient\nwas not finite"},
        {"status": "refused", "error": "no"},
    ]
    for job, end in enumerate(ends):
        schedule = schedules[job % 2]
        typed = [f"schedule={schedule}", "training.batch_size=8", f"optimizer.lr={rates[job]}", "run_dir=sweep"]
        choices, config = {"schedule": schedule, "model": "cnn"}, {"training": {"keep_best": None}}
        folder_of(
            tmp_path / str(job), typed, choices=choices, config=config, log=[{"step": 1, "loss": 9}][: job < 3], **end
        )
    return tmp_path


def rows_of(table):
    return list(csv.DictReader(io.StringIO(table.csv())))


def test_a_sweeps_rows_are_what_differs_best_first_and_those_that_are_not_done_last(sweep):
    table = compared(read([sweep]))
    assert (table.settings, table.metrics, table.objective) == (["schedule", "optimizer.lr"], ["loss"], "loss")
    assert [(row["job"], row["status"], row["optimizer.lr"]) for row in rows_of(table)] == [
        ("1", "done", "0.0001"), ("0", "done", "0.0001"), ("2", "failed", "0.0002"), ("3", "refused", "0.0003"),
    ]  # fmt: skip
    assert [row["loss_q1"] for row in rows_of(table)] == ["0.1", "0.3", "", ""]  # the file has all
    assert table.markdown().splitlines() == [
        "| job | status  | schedule | optimizer.lr | loss   | error                                   |",
        "|-----|---------|----------|--------------|--------|-----------------------------------------|",
        "| 1   | done    | cosine   | 0.0001       | 0.1235 |                                         |",
        "| 0   | done    | linear   | 0.0001       | 0.25   |                                         |",
        "| 2   | failed  | linear   | 0.0002       | 0.01   | the loss \\| its gradient was not finite |",
        "| 3   | refused | cosine   | 0.0003       |        | no                                      |",
    ]
    assert table.failures() == ["1 of 4 jobs failed: job 2: the loss | its gradient", "1 of 4 jobs refused: job 3: no"]


@pytest.mark.parametrize(("metric", "best"), [("fid", "a"), ("precision", "b"), ("eval/recall", "b")])
def test_the_metric_that_the_best_checkpoint_is_kept_by_ranks_in_its_own_direction(tmp_path, metric, best):
    for name, value in (("a", 1.0), ("b", 2.0), ("c", float("nan"))):
        metrics = {"loss": -value, metric: value, f"{metric}_low": value - 0.5, f"{metric}_high": value + 0.25}
        config = {"training": {"keep_best": metric.removeprefix("eval/")}, "name": f"{name}-run"}
        folder_of(tmp_path / name, config=config, status="done", metrics=metrics, log=[{"step": 1}])
    table = compared(read([tmp_path]))
    assert (table.objective, table.metrics[0]) == (metric, metric)
    assert [run.path.name for run in table.runs][0::2] == [best, "c"]
    cell = {"a": "1 [0.5, 1.25]", "b": "2 [1.5, 2.25]"}[best]
    assert f"| {best} {best}-run | done   | {cell}" in table.markdown()
    assert list(rows_of(table)[0])[:6] == ["job", "name", "status", metric, f"{metric}_low", f"{metric}_high"]


def test_an_evaluation_shows_all_its_metrics_and_is_ranked_by_the_first_with_an_interval(tmp_path):
    for job, fid in ((0, 5.0), (1, 3.0)):
        metrics = {"network_evaluations": 9, "fid": fid, "fid_low": fid - 1, "fid_high": fid + 1, "copies": 0.5}
        folder_of(tmp_path / str(job), [f"sampler.num_steps={job}"], status="done", metrics=metrics)
    table = compared(read([tmp_path]))
    assert (table.objective, table.metrics) == ("fid", ["fid", "network_evaluations", "copies"])
    assert [run.path.name for run in table.runs] == ["1", "0"]


def evaluated(folder, sampler, steps, fid, floor=1.5):
    """A job of ddpm-eval -m as it leaves its folder."""
    metrics = {"fid": fid, "fid_low": fid - 1, "fid_high": fid + 1}
    typed = [f"sampler={sampler}", f"sampler.num_steps={steps}", "ckpt=latest"]
    folder_of(folder, typed, choices={"sampler": sampler}, status="done", metrics=metrics)
    told = {"value": fid, "low": fid - 1, "high": fid + 1, "label": "FID@5000", "floor": floor}
    evaluation = {"metrics": {"fid": told}, "network_evaluations": steps}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))


def test_a_sweep_over_samplers_ends_in_a_table_and_a_plot_of_quality_against_cost(tmp_path):
    for job, (sampler, steps) in enumerate((sampler, steps) for sampler in ("ddim", "heun") for steps in (5, 10, 20)):
        evaluated(tmp_path / str(job), sampler, steps, 100 / steps - (sampler == "heun"))
    table = write_summary(tmp_path)
    head, _, first, *_ = (" ".join(line.split()) for line in table.markdown().splitlines())
    assert head == "| job | status | sampler | sampler.num_steps | FID@5000 | network_evaluations |"
    assert first == "| 5 | done | heun | 20 | 4 [3, 5] | 20 |"
    plot = (tmp_path / "summary.svg").read_text()
    assert plot.startswith("<svg") and all(f">{text}</" in plot for text in ("ddim", "heun", "real images", "FID@5000"))
    assert "<title>heun  20: 4 [3, 5]</title>" in plot
    (tmp_path / "3/result.json").unlink()
    assert "3,,unknown,heun,5,19.0,18.0,20.0,5" in write_summary(tmp_path).csv()  # as evaluation.json has it


def test_a_sweep_over_checkpoints_has_a_line_for_each(tmp_path):
    for job in range(4):
        evaluated(tmp_path / str(job), "ddim", (5, 10)[job % 2], 3)
        (tmp_path / str(job) / ".hydra/overrides.yaml").write_text(json.dumps([f"ckpt=run/{job // 2}"]))
    write_summary(tmp_path)
    assert ">ddim ckpt=run/1</" in (tmp_path / "summary.svg").read_text()


def test_a_value_that_was_typed_in_one_run_stands_beside_the_default_of_another(tmp_path):
    folder_of(tmp_path / "a", ["optimizer.lr=1e-3"], choices={"model": "cnn"}, config={"optimizer": {"lr": 0.001}})
    folder_of(tmp_path / "b", ["model=dit"], choices={"model": "dit"}, config={"optimizer": {"lr": 0.002}})
    folder_of(tmp_path / "c", ["model.heads=[1, 2]"], choices={"model": "dit"}, config={"model": {"heads": [1, 2]}})
    table = compared(read([tmp_path]))
    told = [[run.setting(key) for key in ("optimizer.lr", "model", "model.heads")] for run in table.runs]
    assert told == [[0.001, "cnn", None], [0.002, "dit", None], [None, "dit", "[1,2]"]]
    assert table.settings == ["optimizer.lr", "model", "model.heads"]


def test_a_summary_is_of_the_jobs_alone_and_can_be_written_anew(sweep):
    folder_of(sweep / "0/evaluation", status="done", metrics={"fid": 1})
    table = write_summary(sweep)
    assert [run.path.name for run in table.runs] == ["1", "0", "2", "3"]
    assert (sweep / "summary.csv").read_text() == table.csv() and (sweep / "summary.md").read_text() == table.markdown()
    (sweep / "0/result.json").write_text('{"status": "done", "metrics": {"loss": 0.001}}')
    assert write_summary(sweep).runs[0].path.name == "0"
    (sweep / "nothing").mkdir()
    assert write_summary(sweep / "nothing") is None and not list((sweep / "nothing").iterdir())


def test_no_run_makes_an_empty_table(tmp_path):
    assert compared([]).markdown() == "| job | status |\n|-----|--------|\n"


def test_a_table_in_markdown_keeps_its_cells_whatever_is_in_them():
    lines = markdown([["a", "b"], ["x|y\\", "1\n2"]]).splitlines()
    assert lines[2] == "| x\\|y\\\\ | 1 2 |" and len({len(line) for line in lines}) == 1


def test_hparams_hold_everything_that_may_be_varied_with_numbers_as_numbers():
    cfg = {
        "seed": 3, "compile": True, "budget": None, "name": "mine", "run_dir": "/x", "trust": ["a"], "init": "b",
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-3, "betas": [0.9, 0.99], "momentum": None},
        "dataset": {"root": "/data", "image_size": 8}, "schedule": {"values": [0.1] * 1000},
        "training": {"stop_at": 4, "num_steps": 5},
    }  # fmt: skip
    found = hparams(cfg, {"schedule": "linear", "experiment": None, "hydra/launcher": "basic"})
    assert len(found.pop("schedule.values")) == 200
    assert found == {
        "schedule": "linear", "seed": 3, "compile": True, "name": "mine", "optimizer.lr": 1e-3,
        "optimizer.betas": "[0.9,0.99]", "dataset.image_size": 8, "training.num_steps": 5,
    }  # fmt: skip
