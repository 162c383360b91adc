"""Latent diffusion from the command line: all that is done with images is done with their latents, or refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from commands import TINY, run, tensors
from PIL import Image

from ddpm_cli.build.autoencoder import network_of
from ddpm_cli.formats import autoencoder
from ddpm_cli.models.autoencoder import AutoencoderKL
from ddpm_cli.run_dir import checkpoint
from ddpm_cli.training_run import measurements

SIZE = {"in_channels": 1, "latent_channels": 2, "channels": [8, 16], "blocks_per_level": 1, "norm_num_groups": 4}
SIZE |= {"attention": True, "quant_conv": True}
SMALL = [*TINY, "dataset.image_size=16", "training.num_steps=20", "precision=fp32"]
LATENTS = ["representation=latents", "representation.autoencoder=kl"]


def random_autoencoder(folder, seed=0):
    torch.manual_seed(seed)
    autoencoder.write(folder, SIZE, AutoencoderKL(**SIZE, out_channels=2).state_dict())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("latents")
    random_autoencoder(place / "kl")
    told = run("train", *SMALL, *LATENTS, "eval_every=20", "eval.num_images=12", "features.num_steps=5",
               "run_dir=model", cwd=place)  # fmt: skip
    assert "gives 100 images of the data back at" in told.stderr
    return place


def config_of(run_dir):
    return torch.load(run_dir / "checkpoints/step_00000020.pt", weights_only=True)["config"]


def draw(place, out, *more, check=True):
    knobs = ["sampler.num_steps=3", *more, f"out_dir={out}"]
    return run("sample", *(["ckpt=model"] if not any(m.startswith("ckpt") for m in more) else []), *knobs, cwd=place,
               check=check)  # fmt: skip


def pixels(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "images").glob("*.png"))])


def prepared(place, split="train"):
    (folder,) = (place / "data/.prepared").glob(f"shapes-{split}-latents-*")
    return np.load(folder / "items.npy")


def test_the_model_draws_latents_of_unit_deviation_and_shows_images(place):
    items, config = prepared(place), config_of(place / "model")
    assert items.shape == (100, 2, 8, 8) and items.dtype == np.float16
    assert items.astype(float).std() == pytest.approx(1, abs=0.01)
    assert config["model"]["in_channels"] == 2 and config["representation"]["factor"] == 2
    assert Image.open(place / "model/samples/step_00000020.png").size[0] > 4 * 16
    figures = [json.loads(line) for line in (place / "model/metrics.jsonl").read_text().splitlines()]
    assert figures[-1]["eval/fid"] > 0
    draw(place, "drawn", "num_images=5")
    assert pixels(place / "drawn").shape == (5, 16, 16)
    told = json.loads((place / "drawn/sampling.json").read_text())
    assert told["clip"] is False  # latents have no range


def test_what_is_held_out_has_no_mirror_images(place, monkeypatch):
    monkeypatch.chdir(place)
    cfg = config_of(place / "model")
    plain, mirrored = (measurements._heldout({**cfg, "dataset": {**cfg["dataset"], "flip": f}}) for f in (False, True))
    assert len(plain) == len(mirrored) and plain.fingerprint == mirrored.fingerprint


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit_also_without_the_autoencoders_folder(place, monkeypatch):
    knobs = ["eval_every=20", "eval.num_images=12", "features.num_steps=5"]
    run("train", *SMALL, *LATENTS, *knobs, "training.stop_at=7", "run_dir=stopped", cwd=place)
    (place / "kl").rename(place / "elsewhere")
    monkeypatch.setattr("ddpm_cli.build.autoencoder._known", {})  # as in a process of its own
    try:
        run("train", "resume=stopped", cwd=place)
        monkeypatch.setattr("ddpm_cli.build.autoencoder._known", {})
        draw(place, "one_file", "num_images=2")  # one checkpoint is enough to draw from
    finally:
        (place / "elsewhere").rename(place / "kl")
    contents = [torch.load(place / f / "checkpoints/step_00000020.pt", weights_only=True) for f in ("model", "stopped")]
    first, second = map(tensors, contents)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert any(name.startswith("/autoencoder/weights/decoder") for name in first)


def test_another_autoencoder_makes_other_latents_and_is_refused_for_a_model_of_the_first(place, tmp_path):
    before = {path.name for path in (place / "data/.prepared").glob("shapes-*latents*")}
    random_autoencoder(tmp_path / "other", seed=1)
    other = f"representation.autoencoder={tmp_path / 'other'}"
    run("train", *SMALL, LATENTS[0], other, "representation.scale_factor=1", "training.stop_at=1", "run_dir=other",
        cwd=place)  # fmt: skip
    made = {path.name for path in (place / "data/.prepared").glob("shapes-*latents*")} - before
    assert made  # none of the first one's is taken
    for name in made:
        shutil.rmtree(place / "data/.prepared" / name)
    content = torch.load(place / "model/checkpoints/step_00000020.pt", weights_only=True)
    del content["autoencoder"]
    content["config"]["representation"] |= {"autoencoder": str(tmp_path / "other"), "sha256": "0" * 64}
    checkpoint.save(tmp_path / "changed.pt", content)
    done = draw(place, "refused", f"ckpt={tmp_path / 'changed.pt'}", "num_images=2", check=False)
    assert done.returncode == 2 and "is another autoencoder than that of the model" in done.stderr
    assert not (place / "refused").exists()


def test_edits_go_through_the_autoencoder(place):
    draw(place, "drawn_first", "num_images=2")
    image, other = (place / f"drawn_first/images/00000{k}.png" for k in (0, 1))
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 9:] = 255
    Image.fromarray(mask).save(place / "mask.png")
    for words, count in (
        (["edit=inpaint", "edit.mask=mask.png"], 1),
        (["edit=sdedit", "edit.strength=0.7"], 1),
        (["edit=reconstruct"], 1),
        (["edit=interpolate", f"edit.to={other}", "edit.frames=3"], 3),
    ):
        out = words[0].replace("=", "_")
        draw(place, out, *words, f"edit.image={image}")
        assert len(pixels(place / out)) == count and (place / out / "side_by_side.png").exists()


def test_the_model_is_measured_by_the_images_themselves(place):
    knobs = ["metrics=[fid,memorisation]", "num_images=12", "features.num_steps=5", "sampler.num_steps=3"]
    run("eval", "ckpt=model", *knobs, "out_dir=eval", cwd=place)
    told = json.loads((place / "eval/evaluation.json").read_text())
    assert told["reference"]["dataset"] == "shapes-train" and told["metrics"]["fid"]["value"] > 0


REFUSED = [
    ("train", [*LATENTS, "dataset.image_size=15"], "15x15 is no multiple of that"),
    ("train", [*LATENTS, "dataset.channels=3"], "is of images of 1 channels, and dataset.channels=3"),
    ("train", [*LATENTS, "representation.scale_factor=[1,2,3]"], "one number is needed for each of the 2 channels"),
    ("train", [*LATENTS, "representation.factor=4"], "representation.factor=4: the autoencoder has 2"),
    ("train", [*LATENTS, "representation.scale_factor=0"], "one, each, stored, a number above 0, or a list of such"),
    ("train", [*LATENTS, "eval_every=5", "eval.metrics=[nll]"], "nll is of pixels of 8 bits"),
    ("train", ["representation=latents"], "representation.autoencoder is required"),
    ("train", ["representation=latents", "representation.autoencoder=nowhere"], "no such file or folder"),
    ("train", ["representation=latents", "representation.autoencoder=model"], "is no autoencoder"),
    ("eval", ["ckpt=model", "metrics=[nll]"], "nll is of images, and the model is of their latents"),
    ("sample", ["ckpt=model", "clip=true"], "the model draws latents, which have no range"),
    ("export", ["ckpt=model", "format=diffusers"], "this is a model of latents"),
]


@pytest.mark.parametrize(("command", "words", "told"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_cannot_be_is_refused_in_a_line(place, command, words, told):
    words = [*SMALL, *words, "run_dir=refused"] if command == "train" else [*words, "out_dir=refused"]
    done = run(command, *words, cwd=place, check=False)
    assert done.returncode == 2 and told in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (place / "refused/checkpoints").exists()


def test_an_autoencoder_is_refused_where_a_denoiser_is_to_be(place):
    for words, told in (
        (["model=autoencoder_kl"], "experiment=autoencoder"),
        (["loss=autoencoding", "variance=learned"], "experiment=autoencoder"),
        (["experiment=autoencoder", "eval_every=5"], "an autoencoder draws nothing"),
        (["experiment=autoencoder", "dataset=tones"], "choose a dataset of images"),
        (["dataset=tones", "representation=latents", "representation.autoencoder=kl"], "choose another representation"),
    ):
        done = run("train", "dataset=shapes", *words, "run_dir=refused", cwd=place, check=False)
        assert done.returncode == 2 and told in done.stderr


def test_an_autoencoder_is_trained_resumed_exported_and_used(place, monkeypatch):
    knobs = ["experiment=autoencoder", *(word for word in SMALL if not word.startswith(("model.", "training.sample")))]
    knobs += ["training.num_steps=6", "training.log_every=3"]
    knobs += ["model.channels=[8,16]", "model.norm_num_groups=4", "model.latent_channels=2", "training.sample_every=0"]
    run("train", *knobs, "run_dir=ae", cwd=place)
    run("train", *knobs, "training.stop_at=4", "run_dir=ae_stopped", cwd=place)
    run("train", "resume=ae_stopped", cwd=place)
    contents = [torch.load(place / f / "checkpoints/step_00000006.pt", weights_only=True) for f in ("ae", "ae_stopped")]
    first, second = map(tensors, contents)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    run("export", "ckpt=ae", "format=diffusers", "out_dir=exported", cwd=place)
    run("train", *SMALL, LATENTS[0], "representation.autoencoder=exported", "training.stop_at=1", "run_dir=of_exported",
        cwd=place)  # fmt: skip
    content = torch.load(place / "of_exported/checkpoints/step_00000001.pt", weights_only=True)
    monkeypatch.setattr("ddpm_cli.build.autoencoder._known", {})
    node = {**content["config"]["representation"], "autoencoder": str(place / "ae")}
    assert network_of(node).factor == 2  # the same as the run's own, by its hash
    done = draw(place, "nothing", "ckpt=ae", check=False)
    assert done.returncode == 2 and "is an autoencoder, which draws nothing by itself" in done.stderr


def test_an_exported_file_holds_the_autoencoder_and_draws_the_same_images(place, tmp_path, monkeypatch):
    run("export", "ckpt=model", "format=safetensors", f"out_dir={tmp_path / 'file'}", cwd=place)
    draw(place, tmp_path / "of_run")
    monkeypatch.setattr("ddpm_cli.build.autoencoder._known", {})
    monkeypatch.setattr("ddpm_cli.build.autoencoder._opened", lambda spec: pytest.fail(f"opened {spec}"))
    draw(place, tmp_path / "of_file", f"ckpt={tmp_path / 'file'}")
    assert np.array_equal(pixels(tmp_path / "of_run"), pixels(tmp_path / "of_file"))


def test_weights_of_latents_in_a_run_of_pixels_are_told(place):
    told = run("train", *SMALL, "training.num_steps=1", "init=model", "run_dir=of_pixels", cwd=place).stderr
    assert "init=model: its network was trained on latents, and this run is of pixels" in told
    told = run("train", *SMALL, *LATENTS, "training.num_steps=1", "init=model", "run_dir=more", cwd=place).stderr
    assert "was trained on" not in told
