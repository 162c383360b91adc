"""ddpm-export: what it writes is what the checkpoint holds, in diffusers' own hands; what cannot be is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TINY, run

from ddpm_cli.build import load_denoiser
from ddpm_cli.config.groups import primary_keys
from ddpm_cli.diffusion import samplers
from ddpm_cli.diffusion.denoiser import clipped
from ddpm_cli.formats import diffusers as folders
from ddpm_cli.formats.card import card
from ddpm_cli.formats.header import read_header
from ddpm_cli.run_dir import checkpoint

diffusers = pytest.importorskip("diffusers")
DIGITS = ("dataset=digits", "training.batch_size=8", "training.num_samples=2", "sampler.num_steps=2")


def pipeline_of(folder, kind="DDIMPipeline"):
    made = getattr(diffusers, kind).from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
def apart(network, unet, shape, labels=None, told=None):
    """The largest difference of the outputs at three times. labels: for ours; told: for diffusers'."""
    torch.manual_seed(0)
    x, time = torch.randn(3, *shape), torch.tensor([0.0, 3.0, 777.0])
    expected = network(x, time, None if labels is None else {"labels": labels})
    assert expected.std() > 0.05
    return float((unet(x, time, class_labels=told).sample - expected).abs().max())


@torch.no_grad()
def ddim_apart(own, pipeline, shape, labels=None):
    """The largest difference of images after 10 steps of DDIM, each by its own program. diffusers' default goes on with
    a noise that does not fit the clipped estimate, so it is told not to."""
    noise = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    cond = None if labels is None else {"labels": labels}
    denoise = clipped(own)
    mine = samplers.run(samplers.DDIM(10)(lambda x, t: denoise(x, t, cond), noise, own.schedule, None, None))
    numbers = torch.Generator().manual_seed(1)
    theirs = pipeline(4, numbers, 0.0, 10, use_clipped_model_output=True, output_type="pt").images
    return float(((mine / 2 + 0.5).clamp(0, 1) - theirs).abs().max())


@pytest.mark.parametrize("label", [3, "none"])
def test_a_class_alone_is_drawn_by_pipelines_that_know_of_none(label, trained, tmp_path):
    ckpt = trained(*DIGITS)
    done = run("export", f"ckpt={ckpt}", f"label={label}", "out_dir=digits", cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == str(tmp_path / "digits")
    own, pipeline = load_denoiser(ckpt), pipeline_of(tmp_path / "digits")
    number = 10 if label == "none" else label
    assert apart(own.network, pipeline.unet, (1, 8, 8), torch.full((3,), number)) < 1e-5
    assert ddim_apart(own, pipeline, (1, 8, 8), torch.full((4,), number)) < 1e-4
    assert pipeline_of(tmp_path / "digits", "DDPMPipeline").scheduler.config.prediction_type == "v_prediction"


def test_all_classes_are_in_the_network_and_come_back(trained, tmp_path):
    ckpt = trained(*DIGITS)
    run("export", f"ckpt={ckpt}", "out_dir=digits", cwd=tmp_path)
    own, labels = load_denoiser(ckpt), torch.tensor([0, 9, 10])  # the null label too
    assert apart(own.network, pipeline_of(tmp_path / "digits").unet, (1, 8, 8), labels, labels) < 1e-5
    draw = ("num_images=4", "sampler.num_steps=3", "labels=[3,7]")
    for name, source in (("here", ckpt), ("there", "digits")):
        run("sample", f"ckpt={source}", *draw, f"out_dir={name}", cwd=tmp_path)
    here, there = (np.load(tmp_path / f"{name}/samples.npz") for name in ("here", "there"))
    assert (here["images"] == there["images"]).all() and here["images"].std() > 10
    assert json.loads((tmp_path / "there/sampling.json").read_text())["step"] == 1


SCHEDULES = {
    "linear": "linear", "scaled_linear": "scaled_linear", "quadratic": "scaled_linear", "cosine": "squaredcos_cap_v2",
    "constant": None, "sigmoid": None, "cosine_log_snr": None, "cosine schedule.s=0.02": None,
    "linear schedule.num_timesteps=50": "linear", "cosine schedule.zero_terminal_snr=true": "squaredcos_cap_v2",
    "laplace schedule.zero_terminal_snr=true": None,
}  # fmt: skip


@pytest.mark.parametrize("choice", SCHEDULES)
def test_a_schedule_has_its_levels_in_diffusers(choice):
    from projection import composed

    from ddpm_cli.build.model import build_schedule

    cfg = composed("train", *f"schedule={choice}".split())
    schedule = build_schedule(cfg)
    config = folders.scheduler_config(cfg, schedule, True)
    assert config.get("beta_schedule") == SCHEDULES[choice] and ("trained_betas" in config) == (not SCHEDULES[choice])
    theirs = diffusers.DDPMScheduler(**json.loads(json.dumps(config))).alphas_cumprod
    torch.testing.assert_close(schedule.alpha_bar[1:].float(), theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("choices", ["prediction=epsilon", "prediction=x0", "variance=learned_range loss=hybrid"])
def test_every_prediction_is_told(choices, trained, tmp_path):
    ckpt = trained(*TINY, *choices.split(), "model.class_conditional=false")
    run("export", f"ckpt={ckpt}", "out_dir=tiny", cwd=tmp_path)
    pipeline, own = pipeline_of(tmp_path / "tiny", "DDPMPipeline"), load_denoiser(ckpt)
    assert apart(own.network, pipeline.unet, (1, 8, 8)) < 1e-5
    text = (tmp_path / "tiny/README.md").read_text()
    if "learned" in choices:  # DDIM knows of no second output
        assert pipeline(1, num_inference_steps=2).images[0].size == (8, 8) and "import DDPMPipeline" in text
    else:
        assert ddim_apart(own, pipeline_of(tmp_path / "tiny"), (1, 8, 8)) < 1e-4 and "import DDIMPipeline" in text


REFUSED = {
    "schedule=edm prediction=edm timesteps=log_normal": "schedule: its network is told of another time",
    "prediction=mean": "prediction=mean: no scheduler",
    "variance=learned loss=hybrid": "variance=learned: no scheduler",
    "schedule.rescale_time=true": "schedule: its network is told of another time",
    "model=dit_small model.depth=1 model.heads=2": "cannot be a DiT",
    "model.patch_size=2": "model.patch_size=2",
    "schedule=laplace": "no scheduler of DDPM in diffusers has spacing log_snr",
    "schedule=rectified_flow prediction=flow": "schedule: its network is told of another time",
}


@pytest.mark.parametrize("choices", REFUSED)
def test_what_diffusers_cannot_be_told_is_refused_with_the_remedy(choices, trained, tmp_path):
    tiny = [text for text in TINY if "dit" not in choices or not text.startswith("model.")]
    ckpt = trained(*tiny, *choices.split(), *(["model.channels=16"] if "dit" in choices else []))
    done = run("export", f"ckpt={ckpt}", "out_dir=refused", cwd=tmp_path, check=False)
    assert done.returncode == 2 and REFUSED[choices] in done.stderr and "format=safetensors" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and list(tmp_path.iterdir()) == []
    run("export", f"ckpt={ckpt}", "out_dir=file", "format=safetensors", cwd=tmp_path)  # the remedy helps
    again, own = load_denoiser(tmp_path / "file"), load_denoiser(ckpt)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor(7.0)
    with torch.no_grad():
        assert torch.equal(again(x, t).x_0, own(x, t).x_0)


def test_sounds_are_refused_and_kept_by_the_single_file(trained, tmp_path):
    sounds = "dataset=tones dataset.num_sounds=20 dataset.num_samples=512 dataset.sample_rate=2000 model.channels=8"
    quick = "training.batch_size=2 training.num_samples=2 sampler.num_steps=2 training.heldout_every=0"
    ckpt = trained(*sounds.split(), *quick.split())
    done = run("export", f"ckpt={ckpt}", "out_dir=sounds", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "model of sounds" in done.stderr and not (tmp_path / "sounds").exists()
    run("export", f"ckpt={ckpt}", "out_dir=file", "format=safetensors", cwd=tmp_path)
    run("sample", "ckpt=file", "num_images=1", "sampler.num_steps=2", "out_dir=drawn", cwd=tmp_path)
    assert (tmp_path / "drawn/sounds/000000.wav").exists()


def test_a_single_file_draws_the_same_images_and_is_trained_from(trained, tmp_path):
    ckpt = trained(*DIGITS)
    run("export", f"ckpt={ckpt}", "out_dir=file", "format=safetensors", cwd=tmp_path)
    draw = ("num_images=4", "sampler.num_steps=3", "labels=each")
    for name, source in (("here", ckpt), ("there", "file"), ("file's", "file/model.safetensors")):
        run("sample", f"ckpt={source}", *draw, f"out_dir={name}", cwd=tmp_path)
    here, *others = (np.load(tmp_path / f"{name}/samples.npz")["images"] for name in ("here", "there", "file's"))
    assert all((here == other).all() for other in others)
    run("train", "init=file", *DIGITS, "optimizer.lr=1e-30", "training.num_steps=1", "run_dir=on", cwd=tmp_path)
    weights = checkpoint.load(tmp_path / "on/checkpoints/step_00000001.pt")["network"]
    stored = checkpoint.load(next(ckpt.glob("checkpoints/*.pt")))["emas"]["ema"]
    assert all(torch.equal(weights[name], stored[name]) for name in stored)
    told = json.loads(read_header(tmp_path / "file/model.safetensors")["ddpm_cli"])
    assert not {"run_dir", "init", "resume", "trust"} & set(told["config"])


def test_a_file_of_weights_alone_or_a_damaged_one_is_refused_as_what_it_is(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "bare.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, I am not a file of tensors")
    for name, why in (("bare", "no scheduler_config.json"), ("text", "no file of safetensors")):
        done = run("sample", f"ckpt={name}.safetensors", "out_dir=drawn", cwd=tmp_path, check=False)
        assert done.returncode == 2 and why in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_single_file_cannot_name_code_to_be_run(trained, tmp_path):
    from ddpm_cli.formats import single_file

    content = checkpoint.load(next(trained(*DIGITS).glob("checkpoints/*.pt")))
    for group, target in (("schedule", "os.system"), ("model", "ddpm_cli.models.unet.F")):
        config = {**content["config"], group: {**content["config"][group], "_target_": target}, "trust": ["os"]}
        told = {"config": config, "step": 1, "data": {}}
        single_file.write(tmp_path / "evil.safetensors", content["emas"]["ema"], told)
        done = run("sample", "ckpt=evil.safetensors", "out_dir=drawn", cwd=tmp_path, check=False)
        assert done.returncode == 2 and target in done.stderr and not (tmp_path / "drawn").exists()


def test_what_was_written_is_removed_again_if_it_is_another_model(trained, tmp_path, monkeypatch):
    right = folders.folded
    monkeypatch.setattr(folders, "folded", lambda weights, embedding: right(weights, embedding * 1.01))
    done = run("export", f"ckpt={trained(*DIGITS)}", "label=3", "out_dir=wrong", cwd=tmp_path, check=False)
    assert done.returncode == 3 and "differs from" in done.stderr and list(tmp_path.iterdir()) == []


def test_nothing_of_the_users_is_written_over(trained, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    ckpt = trained(*DIGITS)
    done = run("export", f"ckpt={ckpt}", "out_dir=mine", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "letter.txt" in done.stderr
    (tmp_path / "empty").mkdir()
    run("export", f"ckpt={ckpt}", "out_dir=empty", cwd=tmp_path)
    done = run("export", f"ckpt={ckpt}", "out_dir=empty", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "out_dir" in done.stderr


def test_a_folder_that_nobody_named_is_below_outputs(trained, tmp_path):
    done = run("export", f"ckpt={trained(*DIGITS)}", "format=safetensors", cwd=tmp_path)
    folder = Path(done.stdout.splitlines()[-1])
    assert folder.is_relative_to(tmp_path / "outputs/exports")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model.safetensors"]
    assert list(folder.parent.glob(".*")) == []
    done = run("sample", "ckpt=latest", cwd=tmp_path, check=False)  # an export is no run
    assert done.returncode == 2 and "no checkpoint below" in done.stderr


def test_help_tells_of_every_knob(tmp_path):
    told = run("export", "--help", cwd=tmp_path).stdout
    known = primary_keys("export")
    assert [key for key in known if f"\n{key}:" not in told] == [] and "torch_export" in told


def test_a_sweep_writes_every_format(trained, tmp_path):
    line = ("-m", f"ckpt={trained(*DIGITS)}", "format=diffusers,safetensors", "hydra.sweep.dir=all")
    run("export", *line, cwd=tmp_path)
    assert (tmp_path / "all/0/model_index.json").exists() and (tmp_path / "all/1/model.safetensors").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("label=12", "label must lie in 0..9"),
        ("label=twelve", "label must lie in 0..9"),
        ("label=3 format=safetensors", "label: format=safetensors keeps all classes"),
        ("format=onyx", "did you mean onnx"),
        ("weights=mean", "weights must be one of"),
        ("license=ask/me", "license must be the short name"),
    ],
)
def test_a_wrong_setting_is_refused_in_a_line(line, told, trained, tmp_path):
    done = run("export", f"ckpt={trained(*DIGITS)}", *line.split(), "out_dir=out", cwd=tmp_path, check=False)
    assert done.returncode == 2 and told in done.stderr and list(tmp_path.iterdir()) == []


def test_a_label_of_a_model_without_classes_is_refused(trained, tmp_path):
    ckpt = trained(*TINY, "model.class_conditional=false")
    done = run("export", f"ckpt={ckpt}", "label=1", "out_dir=out", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "has no classes; leave label out" in done.stderr


def test_the_card_says_data_recipe_numbers_licence_and_command(trained, tmp_path):
    ckpt = trained(*DIGITS)
    file = next(ckpt.glob("checkpoints/*.pt"))
    metric = {"value": 12.34, "low": 11.0, "high": 13.0, "label": "FID@5000"}
    evaluation = ckpt / "numbers" / "evaluation.json"
    evaluation.parent.mkdir()
    evaluation.write_text(json.dumps({"source": {"checkpoint": str(file)}, "metrics": {"fid": metric}}))
    run("export", f"ckpt={ckpt}", "license=mit", "label=3", "out_dir=digits", cwd=tmp_path)
    text = (tmp_path / "digits/README.md").read_text()
    told = [
        "license: mit", "library_name: diffusers", "| data | digits, 1 channel(s) of 8x8 |", "| prediction | V |",
        "| FID@5000 | 12.34 | 11 to 13 |", 'from_pretrained("digits")',
        f"ddpm-export ckpt={ckpt} license=mit label=3 out_dir=digits",
    ]  # fmt: skip
    assert [line for line in told if line not in text] == []
    evaluation.write_text(json.dumps({"source": {"checkpoint": "/another.pt"}, "metrics": {"fid": metric}}))
    cfg = {"format": "diffusers", "license": None, "label": None, "weights": "ema"}
    config = checkpoint.load(file)["config"]
    text = card(cfg, "digits", file, config, 1, "ddpm-export", labelled=True)
    assert "FID" not in text and "license: unknown" in text and re.search("class_labels=labels", text)


def test_the_cards_program_runs(trained, tmp_path, monkeypatch):
    run("export", f"ckpt={trained(*DIGITS)}", "label=3", "out_dir=digits", cwd=tmp_path)
    program = re.search(r"```python\n(.*?)```", (tmp_path / "digits/README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(program, names)
    assert names["images"][0].size == (8, 8)


# ONNX


@pytest.mark.parametrize(
    "choices",
    [
        DIGITS,
        (*TINY, "model.class_conditional=false"),
        (*TINY[:4], "model=dit_small", "model.depth=1", "model.heads=2", "model.channels=16", "training.num_samples=2"),
    ],
    ids=["digits", "unconditional", "dit"],
)
def test_onnx_computes_the_same_for_any_number_of_images(choices, trained, tmp_path):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    ckpt = trained(*choices)
    run("export", f"ckpt={ckpt}", "format=onnx", "out_dir=out", cwd=tmp_path)
    session = runtime.InferenceSession(tmp_path / "out/model.onnx", providers=["CPUExecutionProvider"])
    network = load_denoiser(ckpt).network
    names = ["sample", "timestep", *(["class_labels"] if network.class_conditional else [])]
    assert [one.name for one in session.get_inputs()] == names
    for count in (1, 2, 5):
        x, time, labels = torch.randn(count, 1, 8, 8), torch.rand(count) * 999, torch.arange(count) % 3
        given = {"sample": x.numpy(), "timestep": time.numpy()}
        given |= {"class_labels": labels.numpy()} if network.class_conditional else {}
        with torch.no_grad():
            expected = network(x, time, {"labels": labels} if network.class_conditional else None)
        np.testing.assert_allclose(session.run(None, given)[0], expected, rtol=0, atol=1e-4)
    told = json.loads(session.get_modelmeta().custom_metadata_map["ddpm_cli"])
    assert told["config"]["model"]["in_channels"] == 1


def test_torch_exports_archive_computes_the_same_for_any_number_of_images(trained, tmp_path):
    ckpt = trained(*DIGITS)
    run("export", f"ckpt={ckpt}", "format=torch_export", "label=3", "out_dir=out", cwd=tmp_path)
    extra = {"ddpm_cli": ""}
    module = torch.export.load(tmp_path / "out/model.pt2", extra_files=extra).module()
    network = load_denoiser(ckpt).network
    for count in (1, 5):
        x, time = torch.randn(count, 1, 8, 8), torch.rand(count) * 999
        with torch.no_grad():
            expected = network(x, time, {"labels": torch.full((count,), 3)})
            torch.testing.assert_close(module(x, time), expected, rtol=0, atol=1e-5)
    assert json.loads(extra["ddpm_cli"])["config"]["model"]["num_classes"] == 10


def test_without_onnx_one_is_told_what_to_install(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("ddpm_cli.formats.onnx_file.find_spec", lambda name: None)
    done = run("export", f"ckpt={trained(*DIGITS)}", "format=onnx", "out_dir=out", cwd=tmp_path, check=False)
    assert done.returncode == 2 and 'pip install "ddpm_cli[onnx]"' in done.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_network_of_cifar10_is_the_same_in_diffusers_hands(tmp_path):
    """35.7 million parameters with random weights."""
    from projection import composed

    from ddpm_cli.build.model import build_denoiser

    cfg = composed("train", "dataset=cifar10")
    torch.manual_seed(0)
    network = build_denoiser(cfg).network
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1)
    weights = network.state_dict()
    checkpoint.save(tmp_path / "a.pt", {"step": 1, "config": cfg, "network": weights, "emas": {"ema": weights}})
    run("export", "ckpt=a.pt", "out_dir=cifar10", cwd=tmp_path)
    own, pipeline = load_denoiser(tmp_path / "a.pt"), pipeline_of(tmp_path / "cifar10")
    forward, images = apart(own.network, pipeline.unet, (3, 32, 32)), ddim_apart(own, pipeline, (3, 32, 32))
    print(f"forward {forward:.1e}, ten steps of DDIM {images:.1e}")
    assert forward < 1e-5 and images < 1e-4
