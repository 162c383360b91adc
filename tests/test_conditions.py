"""Conditions from the command line: trained, resumed, drawn from, measured, taken elsewhere, and refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TINY, run, tensors
from PIL import Image

from ddpm_cli.build.load import load_trained
from ddpm_cli.data.conditions import LowResolution
from ddpm_cli.data.digits import digits
from ddpm_cli.run_dir import checkpoint

ROOT = Path(__file__).resolve().parents[1]
COLOUR = [*TINY, "dataset.channels=3"]
# The README's lines: each trains with a condition, or draws from what the line before has trained.
SECTION = ROOT.joinpath("README.md").read_text(encoding="utf-8").partition("### From something given")[2]
LINES = [line.partition("#")[0].split() for line in SECTION.partition("```\n")[2].partition("```")[0].splitlines()]
TRAINED, DRAWN = LINES[::2], [line[2:] for line in LINES[1::2]]
KINDS = dict(zip(("low_resolution", "grey", "mask", "image", "vector"), TRAINED, strict=True))
COUNTS = dict(zip(KINDS, (3, 1, 30, 30, 2), strict=True))  # of what the lines that draw name
SMALL = [word for word in TINY if not word.startswith("dataset")]
MEASURED = ["eval_every=12", "eval.metrics=[nll]", "eval.nll.num_images=2", "eval.nll.num_strata=2"]
MEASURED += ["eval.nll.tolerance=0.05"]
CHANGED = {
    "low_resolution": [],
    "grey": ["dataset.split=train", "model=cnn", "model.channels=[8,8]"],
    "mask": ["dataset.split=train", "training.micro_batch_size=3", "training.heldout_every=6", *MEASURED],
    "image": ["dataset.split=train", "dataset.flip=true"],
    "vector": ["dataset.split=train"],
}


def words(kind):
    _, *line = KINDS[kind]
    small = [word for word in SMALL if kind != "grey" or not word.startswith("model.")]
    return [*line, *small, *CHANGED[kind], *(["dataset.image_size=8"] if kind != "low_resolution" else [])]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with files to train on and to draw from, and a run of each kind of condition."""
    place, numbers = tmp_path_factory.mktemp("conditions"), np.random.default_rng(0)
    for name, count in (("vectors", 30), ("two", 2), ("many", 100)):
        np.save(place / f"{name}.npy", numbers.normal(size=(count, 5)))
    for folder, size, channels, count in [("photos", 8, 3, 30), ("edges", 8, 1, 30), ("small", 4, 1, 3)]:
        for k in range(count):
            file = place / folder / ("cat", "dog")[k % 2] / f"{k:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = numbers.integers(0, 256, (size, size, channels), np.uint8)
            Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(file)
    (place / "empty").mkdir()
    hole = np.zeros((8, 8), np.uint8)
    hole[2:5, 3:8] = 255
    Image.fromarray(hole).save(place / "hole.png")
    Image.fromarray(numbers.integers(0, 256, (12, 9), np.uint8)).save(place / "old.jpg")
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


def test_the_readme_trains_and_draws_in_turn():
    assert all(line[0] == "ddpm-train" for line in TRAINED) and len(TRAINED) == len(DRAWN)
    assert all(line[:2] == ["ddpm-sample", "ckpt=latest"] for line in LINES[1::2])


@pytest.mark.parametrize("kind", KINDS)
def test_one_sample_is_drawn_from_each_condition_named(place, kind):
    line, count = DRAWN[[*KINDS].index(kind)], COUNTS[kind]
    run("sample", f"ckpt={kind}", *line, f"out_dir={kind}_drawn", "sampler.num_steps=2", cwd=place)
    samples = np.load(place / f"{kind}_drawn/samples.npz")["images"]
    assert samples.shape[:3] == (count, 8, 8) and (place / f"{kind}_drawn/side_by_side.png").exists()
    record = json.loads((place / f"{kind}_drawn/sampling.json").read_text())
    assert record["conditions"]["number"] == count and record["num_images"] == count


def test_a_sample_depends_on_its_condition_alone_and_goes_with_guidance_and_edits(place):
    draw = ["ckpt=grey", "sampler.num_steps=2", "labels=[1]"]
    for name, line in {
        "all": "conditions=edges num_images=3 batch_size=2",
        "one": "conditions=edges/cat/00.png",
        "guided": "conditions=edges num_images=3 guidance.scale=3",
        "edited": "conditions=old.jpg edit=sdedit edit.image=photos/cat/00.png num_images=2",
    }.items():
        run("sample", *draw, *line.split(), f"out_dir=s_{name}", cwd=place)
    kept = (
        "conditions=photos condition_masks=hole.png edit=inpaint edit.image=photos edit.mask=hole.png edit.resample=1"
    )
    run("sample", "ckpt=mask", "sampler.num_steps=2", *kept.split(), "out_dir=s_kept", cwd=place)
    with Image.open(place / "photos/cat/00.png") as photo, Image.open(place / "s_kept/images/000000.png") as drawn:
        assert (np.array(photo) != np.array(drawn)).any(2).sum() <= 15
    run("sample", "ckpt=mask", "num_images=3", "sampler=dpmpp", "sampler.num_steps=2", "out_dir=s_own", cwd=place)
    assert json.loads((place / "s_own/sampling.json").read_text())["conditions"]["from"] == "photos"
    found = {name: np.load(place / f"s_{name}/samples.npz")["images"] for name in ("all", "one", "guided", "edited")}
    assert (found["all"][0] == found["one"][0]).all() and len(found["edited"]) == 2
    assert (found["all"] != found["guided"]).any()


def test_images_are_measured_with_conditions_of_the_test_split(place):
    line = ["num_images=20", "metrics=[fid,accuracy]", "nll.num_images=2", "sampler.num_steps=2", "batch_size=10"]
    few = ["features=classifier", "features.num_steps=10"]
    run("eval", "ckpt=low_resolution", *line, *few, "out_dir=numbers", cwd=place)
    record = json.loads((place / "numbers/evaluation.json").read_text())
    assert record["conditions"]["from"] == "digits-test" and {"fid", "accuracy"} <= record["metrics"].keys()
    done = run("analytic", "ckpt=low_resolution", "num_images=8", "num_levels=3", "batch_size=8", cwd=place)
    assert "low_resolution" in done.stdout


def test_a_run_that_measures_itself_has_conditions(place):
    lines = [json.loads(line) for line in (place / "mask/metrics.jsonl").read_text().splitlines()]
    assert any("eval/nll_bound" in line for line in lines) and any("v_error_heldout" in line for line in lines)


def test_what_can_express_a_condition_is_written(place):
    run("export", "ckpt=vector", "format=safetensors", "out_dir=file", cwd=place)
    run("sample", "ckpt=file", "num_images=2", "sampler.num_steps=2", "out_dir=of_file", cwd=place)


@pytest.mark.slow
def test_a_graph_takes_the_condition_behind_the_noisy_image(place):
    run("export", "ckpt=mask", "format=torch_export", "out_dir=graph", cwd=place)
    graph = torch.export.load(place / "graph/model.pt2").module()
    assert graph(torch.randn(3, 7, 8, 8), torch.rand(3), torch.tensor([0, 1, 2])).shape == (3, 3, 8, 8)


@pytest.mark.parametrize("kind", ["low_resolution", pytest.param("vector", marks=pytest.mark.slow)])
def test_weights_of_another_model_begin_as_it_was(place, kind):
    still = [*COLOUR, "training.sample_every=0", "training.num_steps=1", "optimizer.lr=1e-12"]
    run("train", *still, f"run_dir=before_{kind}", cwd=place)
    chosen = [f"condition={kind}", *(["condition.path=many.npy"] if kind == "vector" else [])]
    run("train", f"init=before_{kind}", *still, *chosen, f"run_dir=begun_{kind}", cwd=place)
    plain, fitted = (load_trained(place / f"{name}_{kind}").denoiser for name in ("before", "begun"))
    x_t, t, labels = torch.randn(2, 3, 8, 8), torch.tensor([3, 40]), {"labels": torch.tensor([0, 1])}
    told = {"condition": torch.ones(2, 3, 8, 8)} if kind == "low_resolution" else {"vector": torch.ones(2, 5)}
    with torch.no_grad():
        assert torch.allclose(fitted(x_t, t, {**labels, **told}).x_0, plain(x_t, t, labels).x_0, atol=1e-4)
    run("train", f"init=begun_{kind}", *still, f"run_dir=taken_{kind}", cwd=place)
    taken, begun = (load_trained(place / f"{name}_{kind}").config["condition"] for name in ("taken", "begun"))
    assert taken == begun, "the condition comes with the weights"


def test_a_run_that_goes_on_says_that_what_lies_beside_its_items_is_another(place):
    before = (place / "vectors.npy").read_bytes()
    np.save(place / "vectors.npy", np.zeros((30, 5)))
    done = run("train", "resume=vector", "training.num_steps=13", cwd=place)
    (place / "vectors.npy").write_bytes(before)
    assert "the data set is not the one of the checkpoint" in done.stderr


DEMANDED = "dataset=image_folder dataset.root=photos dataset.prepare=false dataset.on_error=skip"
REFUSED = {
    "no squares": ("train", "dataset=shapes condition=low_resolution condition.factor=3", "condition.factor=3"),
    "no colour": ("train", "dataset=digits condition=grey", "in colour"),
    "no names": ("train", "dataset=digits condition=image condition.root=edges", "dataset=image_folder"),
    "of sounds": ("train", "dataset=tones condition=low_resolution", "condition=vector"),
    "no numbers": ("train", "dataset=digits condition=vector condition.path=old.jpg", "no .npy file"),
    "no images": ("train", "dataset=image_folder dataset.root=photos condition=image condition.root=empty", "n.root"),
    "too few rows": ("train", "dataset=digits condition=vector condition.path=two.npy", "one row for each"),
    "shifted": ("train", f"{DEMANDED} condition=vector condition.path=vectors.npy", "dataset.on_error=stop"),
    "falls": ("train", "dataset=digits condition=mask condition.share=[0.5,0.2]", "condition.share must rise"),
    "another one": ("train", "resume=mask condition=low_resolution", "cannot change on resume"),
    "without one": ("sample", "ckpt=noise_alone conditions=small", "leave it out"),
    "no mask": ("sample", "ckpt=mask conditions=photos", "condition_masks is required"),
    "a mask too many": ("sample", "ckpt=image conditions=edges condition_masks=hole.png", "condition_masks"),
    "a wrong width": ("sample", "ckpt=low_resolution conditions=two.npy", "two.npy"),
    "vectors of images": ("sample", "ckpt=vector conditions=photos", "holds no .npy"),
    "a graph without vectors": ("export", "ckpt=vector format=torch_export", "format=safetensors"),
    "diffusers": ("export", "ckpt=low_resolution", "format=safetensors"),
    "other guide": ("sample", "ckpt=mask guidance.guide_ckpt=vector guidance.scale=2", "another schedule"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_a_line(place, case):
    command, line, remedy = REFUSED[case]
    if "noise_alone" in line and not (place / "noise_alone").exists():
        run("train", *COLOUR, "training.num_steps=1", "run_dir=noise_alone", cwd=place)
    out = [] if command == "train" and "resume" in line else [f"{'run' if command == 'train' else 'out'}_dir=refused"]
    done = run(command, *line.split(), *out, cwd=place, check=False)
    errors = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and remedy in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mask", "image"])
def test_two_ranks_train_and_draw_as_one(place, kind, monkeypatch):
    """Holes and pairs go by the place in the global batch, whichever rank has it."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    several = ["training.num_steps=12", "training.micro_batch_size=4", "devices=2"]
    run("train", *words(kind), *several, f"run_dir={kind}_two", cwd=place)
    one, two = tensors(newest(place, kind)), tensors(newest(place, f"{kind}_two"))
    weights = [key for key in one if key.startswith(("/network", "/emas"))]
    assert weights and all(torch.allclose(one[key], two[key], atol=2e-4) for key in weights)
    for devices in (1, 2):
        draw = ["num_images=6", "batch_size=2", "sampler.num_steps=2", f"devices={devices}"]
        run("sample", f"ckpt={kind}", *draw, f"out_dir={kind}_by_{devices}", cwd=place)
    files = [(place / f"{kind}_by_{devices}/samples.npz").read_bytes() for devices in (1, 2)]
    assert files[0] == files[1]


@pytest.mark.slow
def test_digits_drawn_from_sixteen_pixels_are_read_as_what_they_are(tmp_path):
    """experiment=digits_superresolution, as in the README, by a support vector machine that has seen the real ones."""
    from sklearn.svm import SVC

    run("train", "experiment=digits_superresolution", "run_dir=run", cwd=tmp_path)
    real, test = (digits(split=split, channels=1, image_size=8, num_classes=10) for split in ("train", "test"))
    (tmp_path / "small").mkdir()
    for k, x_0 in enumerate(test.to_model(test.items)):
        pixels = ((LowResolution(2).given(x_0[None], None)[0, 0] + 1) * 127.5).round().to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "small" / f"{k:03d}.png")
    run("sample", "ckpt=run", "conditions=small", "out_dir=large", cwd=tmp_path)
    drawn = np.load(tmp_path / "large/samples.npz")["images"]
    judge = SVC(gamma="scale", C=10).fit(real.items.flatten(1), real.labels)
    assert drawn.shape == (299, 8, 8, 1)
    assert judge.score(drawn.reshape(299, -1), test.labels) >= 0.9
