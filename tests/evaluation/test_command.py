"""ddpm-eval as it is typed: on one rank or several, and a sweep of samplers."""

import json

import pytest
from commands import run

METRICS = ["metrics=[fid,kid,precision_recall]", "features=classifier", "features.num_steps=30"]
FEW = ["num_images=40", "batch_size=8", "sampler.num_steps=2", "precision=fp32"]


def metrics(folder):
    return json.loads((folder / "evaluation.json").read_text())["metrics"]


@pytest.mark.slow
def test_two_ranks_give_the_numbers_of_one(ckpt, tmp_path):
    for devices in (1, 2):
        run("eval", f"ckpt={ckpt}", *METRICS, *FEW, f"devices={devices}", f"out_dir={devices}", cwd=tmp_path)
    one, two = metrics(tmp_path / "1"), metrics(tmp_path / "2")
    # the root of a covariance of fewer images than features takes its rounding, 1e-16 here and there, to 1e-8
    distances = [numbers.pop("fid") for numbers in (one, two)]
    assert one == two and distances[0]["value"] == pytest.approx(distances[1]["value"], rel=1e-6)


@pytest.mark.slow
def test_a_model_is_told_by_its_likelihood_alone_or_beside_other_metrics(ckpt, tmp_path):
    knobs = ["nll.num_images=4", "nll.num_strata=4", "nll.tolerance=0.01"]
    run("eval", f"ckpt={ckpt}", "metrics=[nll]", *knobs, *FEW, "out_dir=out", cwd=tmp_path)
    alone = metrics(tmp_path / "out")
    assert list(alone) == ["nll_bound", "nll_ode"] and alone["nll_ode"]["solver_error"] >= 0
    run("eval", f"ckpt={ckpt}", "metrics=[fid,nll]", *METRICS[1:], *knobs, *FEW, "out_dir=out", cwd=tmp_path)
    assert list(both := metrics(tmp_path / "out")) == ["fid", "nll_bound", "nll_ode"]
    assert both["nll_ode"] == alone["nll_ode"]


def test_a_sweep_of_samplers_ends_in_a_table_and_a_plot_of_quality_against_cost(ckpt, tmp_path):
    swept = ["sampler=ddim,heun", "sampler.num_steps=2,4"]
    done = run("eval", "-m", f"ckpt={ckpt}", *METRICS, *FEW[:2], *swept, "out_dir=out", cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out")
    assert len((tmp_path / "out" / "summary.csv").read_text().splitlines()) == 5
    assert "<svg" in (tmp_path / "out" / "summary.svg").read_text()
    costs = [json.loads((tmp_path / "out" / str(k) / "result.json").read_text())["metrics"] for k in range(4)]
    assert [cost["network_evaluations"] for cost in costs][:2] == [2, 4]
    assert len(list((tmp_path / "data" / ".prepared").glob("reference-*"))) == 2  # of both splits, made once


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "ckpt is required: ddpm-eval ckpt=PATH; or images="),
        (["images=nowhere", "data=mnist"], "images=nowhere: no such file or folder"),
        (["ckpt=CKPT", "features=inception", "features.weights=none.pth"], "features.weights=none.pth: no such file"),
        (["ckpt=CKPT", "dataset=mnist"], "dataset is not for ddpm-eval: it comes from the checkpoint"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_refused_in_a_line_and_leaves_nothing(ckpt, tmp_path, words, told):
    words = [word.replace("CKPT", str(ckpt)) for word in words]
    done = run("eval", *words, "out_dir=out", cwd=tmp_path, check=False)
    assert done.returncode == 2 and told in done.stderr and not (tmp_path / "out").exists()
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == done.stderr.splitlines()[-1:]
