"""Conditions from the command line: trained, resumed, drawn from, measured, taken elsewhere, and refused."""

import json

import numpy as np
import pytest
import torch
from commands import TINY, run, tensors
from PIL import Image

from ddpm_cli.build.load import load_trained
from ddpm_cli.run_dir import checkpoint

COLOUR = [*TINY, "dataset.channels=3"]
KINDS = {
    "low_resolution": ["condition=low_resolution"],
    "grey": ["condition=grey", "model=cnn", "model.channels=[8,8]"],
    "mask": ["condition=mask", "training.micro_batch_size=3"],
    "image": ["dataset=image_folder", "dataset.root=photos", "dataset.split=train", "dataset.flip=true"],
    "vector": ["condition=vector", "condition.path=vectors.npy"],
}
KINDS["image"] += ["condition=image", "condition.root=edges", "condition.channels=1"]


def words(kind):
    tiny = [word for word in COLOUR if kind != "image" or not word.startswith("dataset")]
    tiny = [word for word in tiny if kind != "grey" or not word.startswith("model.")]
    return [*tiny, *KINDS[kind], *(["dataset.image_size=8"] if kind == "image" else [])]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with files to train on and to draw from, and a run of each kind of condition."""
    place, numbers = tmp_path_factory.mktemp("conditions"), np.random.default_rng(0)
    np.save(place / "vectors.npy", numbers.normal(size=(100, 5)))
    np.save(place / "two.npy", numbers.normal(size=(2, 5)))
    for folder, size, channels, count in [("photos", 8, 3, 30), ("edges", 8, 1, 30), ("small", 4, 3, 3)]:
        (place / folder).mkdir()
        for k in range(count):
            pixels = numbers.integers(0, 256, (size, size, channels), np.uint8)
            Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(place / folder / f"{k:02d}.png")
    hole = np.zeros((8, 8), np.uint8)
    hole[2:5, 3:8] = 255
    Image.fromarray(hole).save(place / "hole.png")
    for kind in KINDS:
        run("train", *words(kind), "training.checkpoint_every=6", "training.num_steps=12", f"run_dir={kind}", cwd=place)
    return place


def newest(place, name):
    return checkpoint.load(place / name / "checkpoints/step_00000012.pt")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_with_a_condition_is_resumed_bit_for_bit(place, kind):
    grid = place / kind / "samples/step_00000012.png"
    whole, drawn = tensors(newest(place, kind)), grid.read_bytes()
    run("train", f"resume={kind}/checkpoints/step_00000006.pt", cwd=place)
    parts = tensors(newest(place, kind))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
    assert grid.read_bytes() == drawn


DRAWN = {
    "low_resolution": ("conditions=small", 3),
    "grey": ("conditions=photos/00.png", 1),
    "mask": ("conditions=photos condition_masks=hole.png", 30),
    "image": ("conditions=edges", 30),
    "vector": ("conditions=two.npy", 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_sample_is_drawn_from_each_condition_named(place, kind):
    line, count = DRAWN[kind]
    run("sample", f"ckpt={kind}", *line.split(), f"out_dir={kind}_drawn", "sampler.num_steps=2", cwd=place)
    samples = np.load(place / f"{kind}_drawn/samples.npz")["images"]
    assert samples.shape == (count, 8, 8, 3) and (place / f"{kind}_drawn/side_by_side.png").exists()
    record = json.loads((place / f"{kind}_drawn/sampling.json").read_text())
    assert record["conditions"]["number"] == count and record["num_images"] == count


def test_a_sample_depends_on_its_condition_alone_and_goes_with_guidance_and_edits(place):
    draw = ["ckpt=low_resolution", "sampler.num_steps=2", "labels=[1]"]
    for name, line in {
        "all": "conditions=small batch_size=2",
        "one": "conditions=small/00.png",
        "guided": "conditions=small guidance.scale=3",
        "edited": "conditions=small/00.png edit=sdedit edit.image=photos/00.png num_images=2",
    }.items():
        run("sample", *draw, *line.split(), f"out_dir=s_{name}", cwd=place)
    run("sample", "ckpt=mask", "num_images=3", "sampler=dpmpp", "sampler.num_steps=2", "out_dir=s_own", cwd=place)
    assert json.loads((place / "s_own/sampling.json").read_text())["conditions"]["from"] == "shapes-test"
    found = {name: np.load(place / f"s_{name}/samples.npz")["images"] for name in ("all", "one", "guided", "edited")}
    assert (found["all"][0] == found["one"][0]).all() and len(found["edited"]) == 2
    assert (found["all"] != found["guided"]).any()


def test_images_are_measured_with_conditions_of_the_test_split(place):
    line = ["num_images=20", "metrics=[fid,accuracy]", "nll.num_images=2", "sampler.num_steps=2", "batch_size=10"]
    few = ["features=classifier", "features.num_steps=10"]
    run("eval", "ckpt=low_resolution", *line, *few, "out_dir=numbers", cwd=place)
    record = json.loads((place / "numbers/evaluation.json").read_text())
    assert record["conditions"]["from"] == "shapes-test" and {"fid", "accuracy"} <= record["metrics"].keys()
    done = run("analytic", "ckpt=low_resolution", "num_images=8", "num_levels=3", "batch_size=8", cwd=place)
    assert "low_resolution" in done.stdout


def test_a_run_that_measures_itself_has_conditions(place):
    measured = ["eval_every=4", "eval.metrics=[nll]", "eval.nll.num_images=2", "eval.nll.num_strata=2"]
    measured += ["eval.nll.tolerance=0.05", "training.heldout_every=2", "training.sample_every=0"]
    run("train", *words("mask"), *measured, "training.num_steps=4", "run_dir=measured", cwd=place)
    lines = [json.loads(line) for line in (place / "measured/metrics.jsonl").read_text().splitlines()]
    assert any("eval/nll_bound" in line for line in lines) and any("v_error_heldout" in line for line in lines)


def test_what_can_express_a_condition_is_written(place):
    run("export", "ckpt=vector", "format=safetensors", "out_dir=file", cwd=place)
    run("sample", "ckpt=file", "num_images=2", "sampler.num_steps=2", "out_dir=of_file", cwd=place)


@pytest.mark.slow
def test_a_graph_takes_the_condition_behind_the_noisy_image(place):
    run("export", "ckpt=mask", "format=torch_export", "out_dir=graph", cwd=place)
    graph = torch.export.load(place / "graph/model.pt2").module()
    assert graph(torch.randn(3, 7, 8, 8), torch.rand(3), torch.tensor([0, 1, 4])).shape == (3, 3, 8, 8)


def test_weights_of_another_model_begin_as_it_was(place):
    run("train", *COLOUR, "training.num_steps=2", "run_dir=plain", cwd=place)
    for kind in ("low_resolution", "vector"):
        still = ["training.sample_every=0", "training.num_steps=1", "optimizer.lr=1e-12"]
        run("train", "init=plain", *words(kind), *still, f"run_dir=i_{kind}", cwd=place)
        plain, fitted = (load_trained(place / name).denoiser for name in ("plain", f"i_{kind}"))
        x_t, t, labels = torch.randn(2, 3, 8, 8), torch.tensor([3, 40]), {"labels": torch.tensor([0, 1])}
        told = {"condition": torch.ones(2, 3, 8, 8)} if kind == "low_resolution" else {"vector": torch.ones(2, 5)}
        with torch.no_grad():
            assert torch.allclose(fitted(x_t, t, {**labels, **told}).x_0, plain(x_t, t, labels).x_0, atol=1e-4)
    run("train", "init=vector", *COLOUR, "training.num_steps=1", "run_dir=i_taken", cwd=place)
    assert newest_config(place, "i_taken")["condition"]["width"] == 5, "the condition comes with the weights"


def newest_config(place, name):
    return checkpoint.load(place / name / "checkpoints/step_00000001.pt")["config"]


REFUSED = {
    "no squares": ("train", "dataset=shapes condition=low_resolution condition.factor=3", "condition.factor=3"),
    "no colour": ("train", "dataset=digits condition=grey", "in colour"),
    "no names": ("train", "dataset=digits condition=image condition.root=edges", "dataset=image_folder"),
    "of sounds": ("train", "dataset=tones condition=low_resolution", "condition=vector"),
    "too few rows": ("train", "dataset=digits condition=vector condition.path=two.npy", "one row for each"),
    "falls": ("train", "dataset=digits condition=mask condition.share=[0.5,0.2]", "condition.share must rise"),
    "another one": ("train", "resume=mask condition=low_resolution", "cannot change on resume"),
    "without one": ("sample", "ckpt=measured_plain conditions=small", "leave it out"),
    "no mask": ("sample", "ckpt=mask conditions=photos", "condition_masks is required"),
    "a mask too many": ("sample", "ckpt=image conditions=photos condition_masks=hole.png", "condition_masks"),
    "a wrong width": ("sample", "ckpt=low_resolution conditions=two.npy", "two.npy"),
    "vectors of images": ("sample", "ckpt=vector conditions=photos", "holds no .npy"),
    "a graph without vectors": ("export", "ckpt=vector format=torch_export", "format=safetensors"),
    "diffusers": ("export", "ckpt=low_resolution", "format=safetensors"),
    "other guide": ("sample", "ckpt=low_resolution guidance.guide_ckpt=mask guidance.scale=2", "condition"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_a_line(place, case):
    command, line, remedy = REFUSED[case]
    if "measured_plain" in line and not (place / "measured_plain").exists():
        run("train", *COLOUR, "training.num_steps=1", "run_dir=measured_plain", cwd=place)
    out = [] if command == "train" and "resume" in line else [f"{'run' if command == 'train' else 'out'}_dir=refused"]
    done = run(command, *line.split(), *out, cwd=place, check=False)
    errors = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and remedy in done.stderr, done.stderr
