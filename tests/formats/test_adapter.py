"""Adapters from the command line: what a run trains, that it resumes, and their file beside the base."""

import json

import numpy as np
import pytest
import torch
import yaml
from commands import TINY, run, tensors

from ddpm_cli.build.load import load_trained
from ddpm_cli.formats.header import read_header
from ddpm_cli.models.lora import is_adapter
from ddpm_cli.run_dir import checkpoint

DATA = [text for text in TINY if not text.startswith(("model.", "schedule."))]
TUNE = (*DATA, "adapter=lora", "training.num_steps=4", "training.checkpoint_every=2", "training.sample_every=2")
TUNE = (*TUNE, "training.num_samples=2", "training.heldout_every=2", "optimizer.lr=0.02")
DRAW = ("num_images=4", "sampler.num_steps=3", "labels=each")


@pytest.fixture(scope="module")
def base(trained):
    return trained(*TINY, "model.head_channels=8")


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    place = tmp_path_factory.mktemp("tuned")
    run("train", f"init={base}", *TUNE, "run_dir=run", cwd=place)
    return place / "run"


def content(folder, step):
    return checkpoint.load(folder / f"checkpoints/step_{step:08d}.pt")


def images(place, name, *args):
    run("sample", *args, *DRAW, f"out_dir={name}", cwd=place)
    return np.load(place / name / "samples.npz")["images"]


def test_a_run_trains_adapters_and_classes_and_leaves_the_base_as_it_was(base, tuned):
    before, after = content(base, 1)["emas"]["ema"], content(tuned, 4)
    for weights in (after["network"], after["emas"]["ema"]):
        changed = {name for name, w in before.items() if not torch.equal(w, weights[name])}
        assert changed == {"class_embedding.weight"}
        new = {name: weights[name] for name in weights.keys() - before.keys()}
        assert new and all(is_adapter(name) and w.abs().max() > 0 for name, w in new.items())
    moments = after["optimizer"]["state"]
    assert len(moments) == len(new) + 1  # of nothing else


def test_a_resumed_run_ends_in_the_same_bits_and_keeps_its_adapters(base, tuned, tmp_path):
    run("train", f"init={base}", *TUNE, "training.stop_at=2", "run_dir=two", cwd=tmp_path)
    refused = run("train", "resume=two", "adapter.rank=4", cwd=tmp_path, check=False)
    assert refused.returncode == 2 and "adapter.rank cannot change on resume" in refused.stderr
    run("train", "resume=two", cwd=tmp_path)
    straight, resumed = (tensors(content(folder, 4)) for folder in (tuned, tmp_path / "two"))
    assert straight.keys() == resumed.keys() and all(torch.equal(straight[name], resumed[name]) for name in straight)
    for step in (2, 4):  # previews
        pictures = [(folder / f"samples/step_{step:08d}.png").read_bytes() for folder in (tuned, tmp_path / "two")]
        assert pictures[0] == pictures[1]


def test_the_file_beside_its_base_draws_what_the_run_draws(base, tuned, tmp_path):
    run("export", f"ckpt={tuned}", "format=lora", "out_dir=file", cwd=tmp_path)
    expected = images(tmp_path, "run", f"ckpt={tuned}")
    assert (images(tmp_path, "both", f"ckpt={base}", "lora=file") == expected).all() and expected.std() > 10
    assert (images(tmp_path, "alone", f"ckpt={base}") != expected).any()
    done = run("sample", f"ckpt={base}", "lora=file", *DRAW, "out_dir=told", cwd=tmp_path)
    assert "step_00000001.pt with the adapters of file (step 4)" in done.stderr
    assert (tmp_path / "file/adapter.safetensors").stat().st_mode == (tmp_path / "file/README.md").stat().st_mode
    told = json.loads((tmp_path / "both/sampling.json").read_text())
    assert told["lora"] == str(tmp_path / "file") and told["step"] == 4
    header = read_header(tmp_path / "file/adapter.safetensors")
    assert (header["rank"], header["alpha"], len(header["base"])) == ("8", "8", 64)
    assert "ddpm-sample ckpt=BASE lora=file" in (tmp_path / "file/README.md").read_text()


@pytest.mark.parametrize("kind", ["safetensors", "diffusers"])
def test_exports_hold_the_merged_weights_of_a_plain_network(kind, base, tuned, tmp_path):
    run("export", f"ckpt={tuned}", "format=lora", "out_dir=file", cwd=tmp_path)
    run("export", f"ckpt={tuned}", f"format={kind}", "out_dir=merged", cwd=tmp_path)
    run("export", f"ckpt={base}", "lora=file", f"format={kind}", "out_dir=both", cwd=tmp_path)
    expected = load_trained(tuned).denoiser.network.state_dict()
    for name in ("merged", "both"):
        again = load_trained(tmp_path / name)
        assert again.adapted is None and again.config.get("adapter") is None
        for key, weight in again.denoiser.network.state_dict().items():
            torch.testing.assert_close(weight, expected[key], rtol=0, atol=0)


def test_a_tuned_run_is_a_base_like_any_other(tuned, tmp_path):
    few = (*DATA, "training.num_steps=1", "training.sample_every=0", "optimizer.lr=1e-30")
    run("train", f"init={tuned}", *few, "run_dir=plain", cwd=tmp_path)
    run("train", f"init={tuned}", *few, "adapter=lora", "adapter.rank=2", "run_dir=again", cwd=tmp_path)
    expected = load_trained(tuned).denoiser.network.state_dict()
    plain, again = (content(tmp_path / name, 1)["network"] for name in ("plain", "again"))
    assert plain.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(plain[name], weight, rtol=0, atol=1e-12)
        torch.testing.assert_close(again[name], weight, rtol=0, atol=1e-12)
    assert {len(w) for name, w in again.items() if name.endswith("lora_A")} == {2}


def test_other_classes_and_channels_are_in_the_file_and_said_where_they_are_frozen(base, tmp_path):
    numbers = np.random.default_rng(0)
    pixels, labels = numbers.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8), np.arange(30) % 3
    np.savez(tmp_path / "colour.npz", images=pixels, labels=labels)
    other = ("dataset=arrays", "dataset.root=colour.npz", "training.num_steps=2", "training.batch_size=8")
    other = (*other, "adapter=lora", "training.sample_every=0", "optimizer.lr=0.02", "sampler.num_steps=3")
    done = run("train", f"init={base}", *other, "run_dir=run", cwd=tmp_path)
    assert "conv_out.weight: (1, 8, 3, 3) to (3, 8, 3, 3), by the mean over channels; it is frozen" in done.stderr
    assert "4 classes to 3: 0 keep their row, the others begin as the null label\n" in done.stderr  # and are trained
    run("export", "ckpt=run", "format=lora", "out_dir=file", cwd=tmp_path)
    drawn = images(tmp_path, "both", f"ckpt={base}", "lora=file")
    assert (drawn == images(tmp_path, "ran", "ckpt=run")).all() and drawn.shape[1:] == (8, 8, 3)
    also = "adapter.also=[class_embedding,conv_in,conv_out]"
    done = run("train", f"init={base}", *other, also, "run_dir=whole", cwd=tmp_path)
    assert "to (3, 8, 3, 3), by the mean over channels\n" in done.stderr


def test_what_cannot_be_is_refused_in_a_line(base, tuned, trained, tmp_path):
    run("export", f"ckpt={tuned}", "format=lora", "out_dir=file", cwd=tmp_path)
    other = trained(*TINY, "model.attention_levels=[0,1]")
    (tmp_path / "text.safetensors").write_text("no tensors")
    cases = {
        f"sample ckpt={other} lora=file": "lora=file was trained on another model than the one that ckpt names",
        f"sample ckpt={base} lora=file weights=raw": "lora=file was trained on another model",
        f"sample ckpt={base} lora={base}": f"write that of this run: ddpm-export ckpt={base} format=lora",
        f"sample ckpt={base} lora=nowhere": "ddpm-export format=lora writes adapter.safetensors\n",
        f"sample ckpt={base} lora=text.safetensors": "no file of safetensors",
        "sample ckpt=file": "ckpt=file holds adapters alone; name the model",
        "train init=file dataset=shapes": "init=file holds adapters alone",
        f"export ckpt={tuned} format=lora out_dir=file": "holds files already, of an export or others (README",
        f"export ckpt={base} format=lora": "was trained without adapter=lora",
        f"export ckpt={tuned} format=lora label=1": "label: format=lora keeps all classes",
        "train adapter=lora dry_run=true": "adapter: adapters are of a trained network; name it with init=RUN",
        f"train init={base} adapter=lora adapter.targets=[to_x]": "no layer in to_x; it has",
        f"train init={base} adapter=lora adapter.rank=0": "adapter.rank must be a whole number from 1",
    }
    for line, told in cases.items():
        command, *args = line.split()
        out = "run_dir=refused" if command == "train" else "out_dir=refused"
        done = run(command, *args, *([] if "dry" in line or "out_dir" in line else [out]), cwd=tmp_path, check=False)
        assert done.returncode == 2 and told in done.stderr, (line, done.stderr)
        assert not (tmp_path / "refused").exists()


def test_a_plan_says_how_much_is_trained(base, tuned, tmp_path):
    done = run("train", f"init={base}", *TUNE, "dry_run=true", cwd=tmp_path)
    plan = yaml.safe_load(done.stdout)
    assert 0 < plan["trained_parameters"] < plan["parameters"] / 2
    again = yaml.safe_load(run("train", f"resume={tuned}", "dry_run=true", cwd=tmp_path).stdout)
    assert again.keys() == plan.keys() and all(again[key] == plan[key] for key in ("parameters", "trained_parameters"))
    assert "trained_parameters" not in run("train", f"init={base}", *DATA, "dry_run=true", cwd=tmp_path).stdout
