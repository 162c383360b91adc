"""A run that evaluates itself as it goes: figures beside the steps, the best checkpoint, a sweep's value; and nothing
else of it changes."""

import json

import pytest
import torch
from commands import TINY, run, tensors

EVAL = [
    "eval_every=10", "eval.metrics=[fid,precision_recall,nll]", "eval.num_images=40", "features=classifier",
    "features.num_steps=4", "eval.nll.num_images=4", "eval.nll.num_strata=4", "eval.nll.tolerance=0.05",
    "training.keep_best=fid", "training.noise_scale=true", "training.num_steps=20", "training.sample_every=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluated")


@pytest.fixture(scope="module")
def evaluated(place):
    run("train", *TINY, *EVAL, "run_dir=evaluated", cwd=place)
    return place / "evaluated"


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_figures_stand_in_metrics_jsonl_in_tensorboard_and_in_the_result(evaluated):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = [line for line in lines(evaluated) if "eval/fid" in line]
    assert [line["step"] for line in found] == [10, 20]
    for name in ("fid", "precision", "recall", "nll_bound", "nll_ode"):
        value, low, high = (found[-1][f"eval/{name}{end}"] for end in ("", "_low", "_high"))
        assert low <= value <= high
    metrics = json.loads((evaluated / "result.json").read_text())["metrics"]
    assert metrics["fid"] == found[-1]["eval/fid"] and metrics["nll_ode_high"] == found[-1]["eval/nll_ode_high"]
    events = EventAccumulator(str(evaluated / "tensorboard"))
    events.Reload()
    assert {"eval/fid", "eval_interval/fid_low", "eval/nll_bound"} <= set(events.Tags()["scalars"])


def test_best_is_the_checkpoint_whose_evaluation_was_best(evaluated):
    fids = {line["step"]: line["eval/fid"] for line in lines(evaluated) if "eval/fid" in line}
    best = torch.load(evaluated / "checkpoints" / "best.pt", weights_only=True)
    assert best["step"] == min(fids, key=fids.__getitem__)


def test_a_run_that_is_evaluated_has_the_weights_of_one_that_is_not(place, evaluated):
    run("train", *TINY, "training.num_steps=20", "training.sample_every=0", "run_dir=plain", cwd=place)
    first, second = (
        tensors(torch.load(place / name / "checkpoints" / "step_00000020.pt", weights_only=True)["network"])
        for name in ("plain", "evaluated")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_resumed_run_finds_the_same_figures(place, evaluated):
    run("train", *TINY, *EVAL, "run_dir=stopped", "training.stop_at=13", cwd=place)
    run("train", "resume=stopped", cwd=place)
    first, second = ([{k: v for k, v in line.items() if k.startswith(("eval/", "v_error"))} for line in lines(folder)]
                     for folder in (evaluated, place / "stopped"))  # fmt: skip
    assert [line for line in second if line] == [line for line in first if line]


def test_a_metric_that_cannot_be_had_leaves_nothing_behind(place):
    words = ["eval_every=10", "features=inception", "features.weights=nowhere.pth", "run_dir=refused"]
    refused = run("train", *TINY, *words, cwd=place, check=False)
    assert refused.returncode == 2 and "nowhere.pth" in refused.stderr, refused.stderr
    assert not (place / "refused").exists()
