"""ddpm-eval's work: numbers with their protocol, the same in whatever pieces they are made; what is refused."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from projection import Projection, composed

from ddpm_cli.build.load import load_trained
from ddpm_cli.build.trainer import build_data
from ddpm_cli.config.context import Context
from ddpm_cli.errors import UserError
from ddpm_cli.evaluation.source import Drawn, find_images
from ddpm_cli.sampling import pipeline
from ddpm_cli.sampling.pictures import save_png, to_image
from ddpm_cli.sampling.run import run_sampling

ALL = "metrics=[fid,kid,inception_score,precision_recall,memorisation]"
FOUR = "metrics=[fid,kid,inception_score,precision_recall]"
FEW = ["num_images=40", "batch_size=16", "sampler.num_steps=3"]


def values(record):
    return {name: (entry["value"], entry["low"], entry["high"]) for name, entry in record["metrics"].items()}


def test_each_number_is_written_with_what_it_depends_on(evaluate, ckpt):
    record, out, said = evaluate(ALL, *FEW, "sampler=heun", "guidance.scale=2", "labels=each")
    names = ["fid", "kid", "inception_score", "precision", "recall", "memorisation_pixels", "memorisation_features"]
    assert list(record["metrics"]) == names
    for name, entry in record["metrics"].items():
        assert entry["low"] <= entry["value"] <= entry["high"] and entry["n"] == 40 and entry["confidence"] == 0.95
        assert entry["better"] == ("lower" if name in ("fid", "kid") or "memorisation" in name else "higher")
        assert entry["floor"] is not None
    assert record["metrics"]["fid"]["label"] == "FID@40"
    assert record["source"]["checkpoint"] == str(ckpt) and record["source"]["step"] == 1
    assert record["sampler"]["name"] == "Heun" and record["guidance"]["scale"] == 2 and record["labels"] == "each"
    assert record["reference"]["dataset"].startswith("shapes") and record["features"]["name"] == "projection"
    assert {"seed", "weights", "precision", "device", "versions", "seconds"} <= set(record)
    result = json.loads((out / "result.json").read_text())
    assert result["status"] == "done" and result["metrics"]["fid_high"] == record["metrics"]["fid"]["high"]
    lines = said.splitlines()
    assert lines[-1] == str(out) and lines[1].split()[0] == "FID@40" and len(lines) == len(names) + 2
    assert (out / "memorisation.png").exists() and Image.open(out / "grid.png").width > 100
    assert not (out / "samples.npz").exists()


@pytest.mark.parametrize(
    ("knobs", "count"),
    [
        (["sampler=heun"], 8),
        (["guidance.scale=2"], 10),
        (["guidance.scale=2", "guidance.guide_ckpt=CKPT"], 10),
        ([], 5),
    ],
    ids=str,
)
def test_network_evaluations_are_counted_as_they_are_made(evaluate, ckpt, knobs, count):
    knobs = [knob.replace("CKPT", str(ckpt)) for knob in knobs]
    record, out, _ = evaluate("metrics=[fid]", "num_images=20", "sampler.num_steps=5", *knobs)
    assert record["network_evaluations"] == count
    assert json.loads((out / "result.json").read_text())["metrics"]["network_evaluations"] == count


DRAWN = Drawn.images


def test_an_interrupted_evaluation_goes_on_and_gives_the_same_numbers(evaluate, features, tmp_path, monkeypatch):
    whole, _, _ = evaluate(ALL, *FEW, out="whole")

    def ended_in_the_second_batch(self, indices, look):
        if 16 in indices:
            os.kill(os.getpid(), signal.SIGTERM)
        return DRAWN(self, indices, look)

    monkeypatch.setattr(Drawn, "images", ended_in_the_second_batch)
    with pytest.raises(SystemExit) as ended:
        evaluate(ALL, *FEW, out="parts")
    assert ended.value.code == 143
    assert json.loads((tmp_path / "parts" / "result.json").read_text())["status"] == "interrupted"
    assert json.loads((tmp_path / "parts" / "evaluation.json").read_text())["metrics"] == {}
    drawn = []
    monkeypatch.setattr(
        Drawn, "images", lambda self, indices, look: drawn.extend(indices) or DRAWN(self, indices, look)
    )
    parts, out, _ = evaluate(ALL, *FEW, out="parts")
    assert drawn == list(range(16, 40)) and values(parts) == values(whole)
    assert json.loads((out / "result.json").read_text())["status"] == "done"


def test_numbers_depend_on_no_batch_size_and_further_metrics_draw_nothing(evaluate, monkeypatch):
    one, _, _ = evaluate(ALL, *FEW, out="one")
    other, _, _ = evaluate(ALL, *FEW, "batch_size=7", out="other")
    for name, found in values(one).items():
        assert values(other)[name] == pytest.approx(found, rel=1e-2, abs=1e-3), name
    monkeypatch.setattr(Drawn, "images", lambda *_: pytest.fail("drawn again"))
    again, _, _ = evaluate("metrics=[kid,inception_score]", *FEW, out="one")
    assert values(again) == {name: values(one)[name] for name in ("kid", "inception_score")}


def test_the_likelihood_is_that_of_the_weights_in_float32_however_images_are_drawn(evaluate, monkeypatch):
    few = ["metrics=[nll]", "nll.num_images=3", "nll.num_strata=4", "nll.tolerance=1e-2"]
    exact, _, _ = evaluate(*few)
    placed = pipeline.placed

    def rounded(denoiser, *rest):  # as a GPU is given it
        machine = placed(denoiser, *rest)
        denoiser.network.bfloat16()
        denoiser.network_dtype = torch.bfloat16
        return machine

    monkeypatch.setattr(pipeline, "placed", rounded)
    again, _, _ = evaluate(*few, out="again")
    assert values(again) == values(exact)


def test_images_out_of_files_score_as_those_that_are_drawn(evaluate, ckpt, tmp_path):
    data = tmp_path / "real"
    data.mkdir()
    real = build_data(load_trained(ckpt).config)
    for k, item in enumerate(real.items):
        save_png(to_image(item), data / f"{k:04d}.png")
    drawn, out, _ = evaluate(FOUR, *FEW, f"data={data}", "save_images=true")
    typed = [f"ckpt={ckpt}", "precision=fp32", *FEW]
    run_sampling(composed("sample", *typed), Context(tmp_path / "samples", typed))
    sampled = tmp_path / "samples"
    for name, source in {"archive": out, "folder": sampled, "files": sampled / "images"}.items():
        found, _, _ = evaluate(FOUR, f"data={data}", out=name, source=f"images={source}")
        assert found["num_images"] == 40 and found["network_evaluations"] == 0
        assert values(found) == values(drawn), name


@pytest.mark.parametrize(
    ("extractor", "overrides", "told"),
    [
        (Projection(num_classes=None), ["metrics=[inception_score]"], "inception_score needs"),
        (Projection(), ["metrics=[fid]", "num_images=1"], "fid of 1 image.*at least 2"),
        (Projection(), ["metrics=[fid,precision_recall]", "num_images=4"], "precision_recall of 4 image.*at least 5"),
        (Projection(), ["labels=[7]"], "labels must lie"),
        (Projection(), ["data=nothing"], "data=nothing: neither a data set .*mnist.* nor a folder"),
        (Projection(), ["data_root=elsewhere"], "data_root=elsewhere"),
    ],
    ids=["probabilities", "one image", "four images", "label", "data", "root"],
)
def test_what_cannot_be_measured_is_refused_in_a_line_and_leaves_no_folder(
    evaluate, features, tmp_path, extractor, overrides, told
):
    features(extractor)
    with pytest.raises(UserError, match=told) as caught:
        evaluate(*FEW, *overrides)
    assert len(str(caught.value).splitlines()) == 1 and not (tmp_path / "out").exists()


def test_files_that_hold_no_images_are_refused_in_a_line(tmp_path):
    np.savez(tmp_path / "half.npz", images=np.zeros((9, 8, 8, 1), np.uint8))
    (tmp_path / "half.npz").write_bytes((tmp_path / "half.npz").read_bytes()[:200])
    np.save(tmp_path / "one.npy", np.zeros((9, 8, 8, 1), np.uint8))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "1.png").write_text("none")
    named = {"half.npz": "nor an .npz archive", "one.npy": "nor an .npz archive", "text": "1.png: not an image"}
    for name, told in {**named, "text/1.png": r"nor an .npz archive of them \(it holds no arrays\)"}.items():
        with pytest.raises(UserError, match=told) as caught:
            find_images(tmp_path / name)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("other", [["seed=1"], ["sampler.num_steps=2"], ["weights=raw"]], ids=str)
def test_a_folder_of_another_evaluation_is_refused_as_it_is(evaluate, tmp_path, other):
    evaluate("metrics=[fid]", "num_images=8", "sampler.num_steps=3")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.[npj]*")}
    with pytest.raises(UserError, match="choose another out_dir"):
        evaluate("metrics=[fid]", "num_images=8", "sampler.num_steps=3", *other)
    assert {path: path.read_bytes() for path in before} == before


def test_other_features_of_the_same_name_are_others(evaluate, features):
    evaluate("metrics=[fid]", "num_images=8", "sampler.num_steps=3")
    features(Projection(sha256="1" * 64))
    with pytest.raises(UserError, match="features"):
        evaluate("metrics=[fid]", "num_images=8", "sampler.num_steps=3")


def test_a_larger_evaluation_draws_the_images_that_a_smaller_one_left(evaluate, monkeypatch):
    whole, _, _ = evaluate("metrics=[fid]", *FEW, out="whole")
    evaluate("metrics=[fid]", *FEW, "num_images=16")
    drawn = []
    monkeypatch.setattr(
        Drawn, "images", lambda self, indices, look: drawn.extend(indices) or DRAWN(self, indices, look)
    )
    grown, _, _ = evaluate("metrics=[fid]", *FEW)
    assert drawn == list(range(16, 40)) and values(grown) == values(whole)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "ckpt is required: ddpm-eval ckpt=PATH; or images="),
        (["ckpt=x", "images=y"], "leave one of the two out"),
        (["images=y"], "data=mnist"),
        (["images=y", "data=mnist", "metrics=[nll]"], "nll"),
        (["ckpt=x", "metrics=[]"], "metrics must be"),
        (["ckpt=x", "metrics=[fdi]"], "metrics must be"),
        (["ckpt=x", "num_images=0"], "num_images must be"),
    ],
    ids=str,
)
def test_a_command_line_that_makes_no_evaluation_is_refused_without_torch(overrides, told):
    with pytest.raises(UserError, match=told):
        composed("eval", *overrides)
