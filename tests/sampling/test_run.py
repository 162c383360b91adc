"""ddpm-sample end to end: from a checkpoint alone to images, the same whatever the batch size."""

import json

import numpy as np
import pytest
import torch
from commands import TINY, run
from PIL import Image

from ddpm_cli.build.load import load_denoiser
from ddpm_cli.run_dir import checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampling")
    run("train", *TINY, "training.num_steps=20", "variance=learned_range", "loss=hybrid", cwd=folder)
    return folder


def sample(place, *args, check=True, out=None):
    where = [f"out_dir={out}"] if out else []
    done = run(
        "sample", "ckpt=latest", "num_images=6", "sampler.num_steps=4", *args, *where, cwd=place, check=check
    )  # fmt: skip
    return done if not check else (np.load(f"{done.stdout.splitlines()[-1]}/samples.npz"), done)


def test_a_checkpoint_is_all_that_is_needed(place):
    arrays, done = sample(place, "labels=each", "animate=true", out="out")
    folder = place / "out"
    assert done.stdout.splitlines()[-1] == str(folder)
    assert arrays["images"].shape == (6, 8, 8, 1) and arrays["images"].dtype == np.uint8
    assert arrays["labels"].tolist() == [0, 1, 2, 3, 0, 1] and arrays["labels"].dtype == np.int64
    names = sorted(p.name for p in folder.iterdir())
    assert {"grid.png", "images", "samples.npz", "sampling.json", "walk.gif"} <= set(names)
    assert sorted(p.name for p in (folder / "images").iterdir()) == [f"{k:06d}.png" for k in range(6)]
    assert np.array_equal(np.asarray(Image.open(folder / "images" / "000003.png")), arrays["images"][3, :, :, 0])
    record = json.loads((folder / "sampling.json").read_text())
    assert record["step"] == 20 and record["sampler"]["num_steps"] == 4 and len(record["sha256"]) == 64


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "dpmpp"])
def test_image_k_does_not_depend_on_its_batch(place, sampler):
    one, _ = sample(place, f"sampler={sampler}", "batch_size=6", "precision=fp32")
    parts, _ = sample(place, f"sampler={sampler}", "batch_size=4", "precision=fp32")
    assert np.array_equal(one["labels"], parts["labels"])
    assert np.abs(one["images"].astype(int) - parts["images"].astype(int)).max() <= 1


def test_another_seed_another_image_and_labels_can_be_chosen(place):
    first, _ = sample(place, "labels=[2]")
    second, _ = sample(place, "labels=[2]", "seed=1")
    assert first["labels"].tolist() == [2] * 6 and not np.array_equal(first["images"], second["images"])
    null, _ = sample(place, "labels=none", "variance=fixed_small")
    assert null["labels"].tolist() == [4] * 6


@pytest.mark.parametrize(
    "args,told",
    [
        (["labels=[9]"], "labels"),
        (["sampler.num_steps=51"], "sampler.num_steps"),
        (["weights=averaged"], "weights"),
    ],
)
def test_what_the_checkpoint_cannot_serve_is_refused_by_name(place, args, told):
    done = run("sample", "ckpt=latest", *args, cwd=place, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and told in done.stderr.splitlines()[0]


def test_a_folder_of_other_files_is_refused_as_it_is(place, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    refused = run("sample", "ckpt=latest", f"out_dir={tmp_path}", cwd=place, check=False)
    assert refused.returncode == 2 and "thesis.tex" in refused.stderr and "choose" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_refusal_leaves_no_folder_and_an_interrupted_drawing_can_go_on(place, tmp_path):
    for args in (["labels=[10]"], ["guidance.scale=2", "guidance.interval=[5,0.3]"]):
        refused = run("sample", "ckpt=latest", *args, f"out_dir={tmp_path / 'deep' / 'out'}", cwd=place, check=False)
        assert refused.returncode == 2 and list(tmp_path.iterdir()) == []
    (tmp_path / "images").mkdir()  # killed before it wrote its record
    (tmp_path / "sample.log").touch()
    (tmp_path / ".hydra").mkdir()
    sample(place, out=tmp_path)
    assert (tmp_path / "samples.npz").exists()


def test_a_notebook_gets_the_denoiser_in_one_call(place):
    path = sorted(place.glob("outputs/*/*/checkpoints/*.pt"))[-1]
    denoiser = load_denoiser(path)
    denoised = denoiser(torch.randn(2, 1, 8, 8), torch.tensor([5, 40]), {"labels": torch.tensor([0, 4])})
    assert denoised.x_0.shape == denoised.raw.shape == (2, 1, 8, 8) and not denoiser.training
    assert not any(p.requires_grad for p in denoiser.parameters())


def test_trust_in_a_checkpoint_is_void(place, tmp_path):
    path = sorted(place.glob("outputs/*/*/checkpoints/*.pt"))[-1]
    content = torch.load(path, weights_only=True)
    content["config"]["trust"] = ["os"]
    content["config"]["schedule"] = {"_target_": "os.system", "command": f"touch {tmp_path / 'ran'}"}
    checkpoint.save(tmp_path / "evil.pt", content)
    done = run("sample", f"ckpt={tmp_path / 'evil.pt'}", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "schedule._target_" in done.stderr and not (tmp_path / "ran").exists()
