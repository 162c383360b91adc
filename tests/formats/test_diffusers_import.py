"""Folders of diffusers opened: every setting that changes what the weights mean is followed, or refused by its name."""

import json
import re

import numpy as np
import pytest
import torch
import yaml
from commands import run
from foreign import GOOGLE_SCHEDULER, GOOGLE_UNET, SMALL
from safetensors.torch import load_file, save_file

from ddpm_cli.build import load_denoiser
from ddpm_cli.diffusion import samplers
from ddpm_cli.diffusion.denoiser import clipped
from ddpm_cli.errors import UserError
from ddpm_cli.formats.find import find_model
from ddpm_cli.formats.opened import open_model

diffusers = pytest.importorskip("diffusers")


def edited(folder, file, **changes):
    """A JSON file of the folder with changes; None takes a key away."""
    content = json.loads((folder / file).read_text())
    content |= changes
    (folder / file).write_text(json.dumps({k: v for k, v in content.items() if v != "gone"}))


@torch.no_grad()
def outputs(network, pipeline, labels=None):
    """(ours, diffusers') for the same noisy images and times."""
    size, channels = pipeline.unet.config.sample_size, pipeline.unet.config.in_channels
    x, time = torch.randn(3, channels, size, size), torch.tensor([0.0, 3.0, 777.0])
    return network(x, time, {"labels": labels}), pipeline.unet(x, time, class_labels=labels).sample


# Each of the first six loads without a word in a network without it, and changes its output (see below).
SETTINGS = {
    "norm_num_groups": {"norm_num_groups": 4},
    "downsample_padding": {"downsample_padding": 0},
    "flip_sin_to_cos": {"flip_sin_to_cos": False},
    "attention_head_dim": {"attention_head_dim": 16},
    "freq_shift": {"freq_shift": 1},
    "norm_eps": {"norm_eps": 1e-2},
    "one head": {"attention_head_dim": None},
    "scale_shift": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
    "resnet": {"downsample_type": "resnet", "upsample_type": "resnet",
        "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"]},
    "widths": {"block_out_channels": [24, 40, 64], "down_block_types": ["AttnDownBlock2D", *["DownBlock2D"] * 2],
        "up_block_types": [*["UpBlock2D"] * 2, "AttnUpBlock2D"]},
}  # fmt: skip


@pytest.mark.parametrize("name", ["nothing", *SETTINGS])
def test_a_setting_of_the_network_is_followed(name, saved):
    folder, pipeline = saved(SMALL | SETTINGS.get(name, {}))
    mine, theirs = outputs(load_denoiser(folder).network, pipeline)
    assert theirs.std() > 0.1
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", list(SETTINGS)[:6])
def test_a_setting_left_out_of_the_file_would_draw_something_else(name, saved):
    folder, pipeline = saved(SMALL | SETTINGS[name] | {"norm_num_groups": SETTINGS[name].get("norm_num_groups", 16)})
    edited(folder, "unet/config.json", **{name: SMALL.get(name, "gone") if name == "norm_num_groups" else "gone"})
    mine, theirs = outputs(load_denoiser(folder).network, pipeline)
    assert (mine - theirs).abs().max() > 1e-4


def test_classes_are_followed_and_have_no_null_label_that_was_never_learned(saved, tmp_path):
    folder, pipeline = saved(SMALL | {"num_class_embeds": 5})
    network = load_denoiser(folder).network
    assert network.num_classes == 5
    torch.testing.assert_close(*outputs(network, pipeline, torch.tensor([0, 4, 2])), rtol=0, atol=1e-5)
    draw = ("sample", f"ckpt={folder}", "num_images=5", "sampler.num_steps=2", "out_dir=drawn")
    run(*draw, "labels=each", cwd=tmp_path)
    assert np.load(tmp_path / "drawn/samples.npz")["labels"].tolist() == [0, 1, 2, 3, 4]
    done = run(*draw[:-1], "labels=none", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "never learned its null label" in done.stderr


SCHEDULES = {
    "linear": {},
    "few steps": {"num_train_timesteps": 50, "beta_end": 0.3},
    "many steps": {"num_train_timesteps": 4000, "beta_end": 0.005},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "trained_betas": {"trained_betas": [0.01 * i for i in range(1, 31)], "num_train_timesteps": 30},
    "zero snr": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_has_the_levels_of_diffusers(name, saved):
    folder, pipeline = saved(scheduler=SCHEDULES[name])
    schedule = load_denoiser(folder).schedule
    assert schedule.num_timesteps == pipeline.scheduler.config.num_train_timesteps
    torch.testing.assert_close(schedule.alpha_bar[1:].float(), pipeline.scheduler.alphas_cumprod, rtol=0, atol=2e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip", [True, False])
@torch.no_grad()
def test_ten_steps_of_ddim_end_where_diffusers_ends(prediction, clip, saved):
    settings = {"prediction_type": prediction, "clip_sample": clip, "timestep_spacing": "trailing"}
    folder, _ = saved(scheduler=settings)
    trained = load_denoiser(folder)
    mine = draw_ddim(clipped(trained) if clip else trained, trained.schedule, (4, 1, 8, 8))
    torch.testing.assert_close(mine, theirs_ddim(folder, 4), rtol=0, atol=1e-4)
    assert open_model(folder).content["config"]["clip"] is clip


def draw_ddim(denoise, schedule, shape):
    """Ours in 10 steps, brought to [0, 1] as diffusers does."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return (samplers.run(samplers.DDIM(10, "trailing")(denoise, noise, schedule, None, None)) / 2 + 0.5).clamp(0, 1)


def theirs_ddim(folder, count):
    """diffusers' own pipeline, out of the folder; its noise is one draw of torch's. Its default goes on with a noise
    that does not fit the clipped estimate."""
    pipeline = diffusers.DDIMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    numbers = torch.Generator().manual_seed(1)
    return pipeline(count, numbers, 0.0, 10, use_clipped_model_output=True, output_type="pt").images


def test_estimates_are_clipped_as_the_scheduler_says_unless_it_is_typed(saved, tmp_path):
    folder, _ = saved(scheduler={"clip_sample": False})
    for typed, clip in (([], False), (["clip=true"], True), (["clip=dynamic"], "dynamic")):
        out = f"drawn_{clip}"
        run("sample", f"ckpt={folder}", *typed, "num_images=1", "sampler.num_steps=2", f"out_dir={out}", cwd=tmp_path)
        assert json.loads((tmp_path / out / "sampling.json").read_text())["clip"] == clip


@torch.no_grad()
def test_every_step_with_noise_ends_where_diffusers_ends(saved, monkeypatch):
    """With the variance that the network learned, and with fixed ones."""
    for kind, outputs_ in (("learned_range", 2), ("fixed_large", 1), ("fixed_small", 1)):
        settings = {"variance_type": kind, "num_train_timesteps": 20, "beta_end": 0.5}
        folder, pipeline = saved(SMALL | {"out_channels": outputs_}, settings, name=kind)
        noise = [torch.randn(2, 1, 8, 8) for _ in range(21)]
        draws = iter(noise)
        for module in ("pipelines.ddpm.pipeline_ddpm", "schedulers.scheduling_ddpm"):
            monkeypatch.setattr(f"diffusers.{module}.randn_tensor", lambda *args, draws=draws, **kwargs: next(draws))
        theirs = pipeline(2, num_inference_steps=20, output_type="pt").images
        own = load_denoiser(folder)
        steps = samplers.Ancestral()(
            clipped(own), noise[0], own.schedule, own.variance, lambda i, noise=noise: noise[i + 1]
        )
        torch.testing.assert_close((samplers.run(steps) / 2 + 0.5).clamp(0, 1), theirs, rtol=0, atol=1e-4)


REFUSED = {
    "center_input_sample": ("unet", {"center_input_sample": True}),
    "time_embedding_type": ("unet", {"time_embedding_type": "fourier"}),
    "mid_block_scale_factor": ("unet", {"mid_block_scale_factor": 2}),
    "mid_block_type": ("unet", {"mid_block_type": None}),
    "act_fn": ("unet", {"act_fn": "gelu"}),
    "add_attention": ("unet", {"add_attention": False}),
    "class_embed_type": ("unet", {"class_embed_type": "timestep"}),
    "attn_norm_num_groups": ("unet", {"attn_norm_num_groups": 4}),
    "resnet_time_scale_shift": ("unet", {"resnet_time_scale_shift": "spatial"}),
    "down_block_types": ("unet", {"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]}),
    "attention on one way": ("unet", {"up_block_types": ["UpBlock2D", "UpBlock2D"]}),
    "downsample_type": ("unet", {"down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"]}),
    "sample_size": ("unet", {"sample_size": [8, 16]}),
    "out_channels": ("unet", {"out_channels": 2}),
    "something_new": ("unet", {"something_new": 3}),
    "UNet2DConditionModel": ("unet", {"_class_name": "UNet2DConditionModel"}),
    "prediction_type": ("scheduler", {"prediction_type": "flow_prediction"}),
    "variance_type": ("scheduler", {"variance_type": "learned"}),
    "beta_schedule": ("scheduler", {"beta_schedule": "laplace"}),
    "clip_sample_range": ("scheduler", {"clip_sample_range": 3.0}),
    "thresholding": ("scheduler", {"thresholding": True, "sample_max_value": 2.0}),
    "EulerDiscreteScheduler": ("scheduler", {"_class_name": "EulerDiscreteScheduler"}),
    "settings cannot be read": ("unet", {"block_out_channels": "wide"}),
    "num_train_timesteps": ("scheduler", {"num_train_timesteps": 10**12, "beta_schedule": "sigmoid"}),
    "num_class_embeds": ("unet", {"num_class_embeds": 5, "_ddpm_cli": {"num_classes": 900000}}),
    "vqvae": ("index", {"vqvae": ["diffusers", "VQModel"]}),
}
FILES = {"unet": "unet/config.json", "scheduler": "scheduler/scheduler_config.json", "index": "model_index.json"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_network_here_can_be_is_refused_by_its_name(name, saved, tmp_path):
    folder, _ = saved()
    file, changes = REFUSED[name]
    edited(folder, FILES[file], **changes)
    with pytest.raises(UserError, match=re.escape(name)) as refusal:
        find_model(folder)  # as the command line is checked, without torch
    assert len(str(refusal.value).splitlines()) == 1
    done = run("sample", f"ckpt={folder}", "out_dir=drawn", cwd=tmp_path, check=False)
    assert done.returncode == 2 and name in done.stderr and not (tmp_path / "drawn").exists()


@pytest.mark.parametrize("gone", ["scheduler/scheduler_config.json", "unet/diffusion_pytorch_model.safetensors"])
def test_a_folder_that_lacks_a_part_is_refused_with_the_parts_name(gone, saved):
    folder, _ = saved()
    (folder / gone).unlink()
    with pytest.raises(UserError, match=re.escape(gone.rpartition("/")[2])):
        find_model(folder)


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", "null", '{"_class_name": 5}'])
@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_no_configuration_is_refused_in_a_line(file, text, saved):
    folder, _ = saved()
    (folder / FILES[file]).write_text(text)
    if (file, text) == ("index", '{"_class_name": 5}'):
        find_model(folder)  # what pipeline it is for does not matter
        return
    with pytest.raises(UserError) as refusal:
        find_model(folder)
    assert len(str(refusal.value).splitlines()) == 1 and len(str(refusal.value)) < 400


def test_weights_that_do_not_fit_or_are_damaged_are_refused(saved, tmp_path):
    folder, _ = saved()
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    name = "mid_block.attentions.0.to_q.weight"
    save_file({k: v for k, v in weights.items() if k != name}, file)
    done = run("sample", f"ckpt={folder}", "out_dir=drawn", cwd=tmp_path, check=False)
    assert done.returncode == 2 and name in done.stderr
    file.write_bytes(file.read_bytes()[:-100])
    done = run("sample", f"ckpt={folder}", "out_dir=drawn", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "cannot be read" in done.stderr and len(done.stderr.splitlines()) <= 2


def google(folder, pickled):
    """A folder in the shape of google/ddpm-cifar10-32: all files in one place, attention by its old names."""
    network = diffusers.UNet2DModel(**{k: v for k, v in GOOGLE_UNET.items() if k[0] != "_"})
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = network.state_dict()
    for new, name in old.items():
        weights = {re.sub(rf"\.{re.escape(new)}\.", f".{name}.", key): tensor for key, tensor in weights.items()}
    folder.mkdir()
    if pickled:
        torch.save(weights, folder / "diffusion_pytorch_model.bin")
    else:
        save_file(weights, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    parts = {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": "0.1.1", **parts}
    for name, content in (("model_index", index), ("config", GOOGLE_UNET), ("scheduler_config", GOOGLE_SCHEDULER)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return network.eval()


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_the_shape_of_google_ddpm_cifar10_32_draws_trains_on_and_is_exported_again(pickled, tmp_path):
    torch.manual_seed(0)
    network = google(tmp_path / "google", pickled)
    own = load_denoiser(tmp_path / "google")
    with torch.no_grad():
        mine = draw_ddim(clipped(own), own.schedule, (2, 3, 32, 32))
        edited(tmp_path / "google", "scheduler_config.json", timestep_spacing="trailing")
        torch.testing.assert_close(mine, theirs_ddim(tmp_path / "google", 2), rtol=0, atol=1e-4)
    run("sample", "ckpt=google", "num_images=2", "sampler.num_steps=2", "out_dir=drawn", cwd=tmp_path)
    assert json.loads((tmp_path / "drawn/sampling.json").read_text())["variance"] == "FixedLarge"
    tune = ("init=google", "dataset=shapes", "dataset.num_images=20", "training.batch_size=4", "optimizer.lr=1e-30")
    tune = (*tune, "model.dropout=0.1", "training.num_steps=2", "training.num_samples=2")
    run("train", *tune, "run_dir=tuned", cwd=tmp_path)
    cfg = yaml.safe_load((tmp_path / "tuned/config.yaml").read_text())
    assert cfg["prediction"]["_target_"].endswith("Epsilon") and cfg["schedule"]["_target_"].endswith("linear")
    assert cfg["model"]["norm_num_groups"] == 8 and cfg["model"]["dropout"] == 0.1
    run("train", "resume=tuned", "training.num_steps=3", cwd=tmp_path)
    run("export", "ckpt=tuned", "out_dir=again", cwd=tmp_path)
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path / "again")
    assert again.scheduler.config.variance_type == "fixed_large" and again.scheduler.config.beta_schedule == "linear"
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([5, 900])
    with torch.no_grad():  # a learning rate of 1e-30 leaves every weight as it was
        torch.testing.assert_close(again.unet(x, t).sample, network(x, t).sample, rtol=0, atol=1e-5)


def test_the_parts_of_a_folder_may_be_named_too(saved):
    folder, _ = saved()
    for path in (folder / "unet", folder / "unet/diffusion_pytorch_model.safetensors"):
        assert open_model(path).path == open_model(folder).path


def test_a_folder_of_diffusers_is_no_run(saved, tmp_path):
    folder, _ = saved()
    for command, key in (("train", "resume"), ("analytic", "ckpt")):
        done = run(command, f"{key}={folder}", cwd=tmp_path, check=False)
        assert done.returncode == 2 and "ddpm-train init=PATH" in done.stderr


def test_what_it_was_trained_on_must_be_named_to_be_compared_with(saved, tmp_path):
    folder, _ = saved()
    done = run("eval", f"ckpt={folder}", "num_images=20", "out_dir=numbers", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "data=cifar10" in done.stderr and not (tmp_path / "numbers").exists()


def test_training_from_weights_of_other_channels_fits_them_to_the_data(saved, tmp_path):
    folder, _ = saved()
    few = ["training.num_steps=1", "training.sample_every=0", "run_dir=new"]
    done = run("train", f"init={folder}", "dataset=shapes", *few, cwd=tmp_path)
    assert re.search(r"conv_in.weight: \(\d+, 1, 3, 3\) to \(\d+, 3, 3, 3\), by the mean over channels", done.stderr)
    assert load_denoiser(tmp_path / "new").network.in_channels == 3


def test_without_safetensors_one_is_told_what_to_install(saved, tmp_path, monkeypatch):
    folder, _ = saved()
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(UserError, match=re.escape('pip install "ddpm_cli[formats]"')):
        load_denoiser(folder)
