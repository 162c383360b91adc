"""Sounds from the command line: all that is done with images is done with them, or refused in a line."""

import json

import numpy as np
import pytest
import torch
from commands import run, tensors
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddpm_cli.config.groups import options_of
from ddpm_cli.media.wav import read_wav

TINY = (
    "dataset=tones dataset.num_sounds=60 dataset.num_samples=600 model.channels=8 model.channel_mult=[1,2] "
    "model.attention_levels=[] training.batch_size=8 training.num_steps=12 training.log_every=4 precision=fp32 "
    "training.sample_every=6 training.checkpoint_every=6 training.num_samples=4 sampler.num_steps=3 "
    "schedule.num_timesteps=50"
).split()
SPECTRUM = ["representation.fft_size=30", "representation.hop=15", "model.patch_size=2"]
WAVEFORM = ["representation=waveform", "model=unet1d", "model.channels=8", "model.channel_mult=[1,2]"]
WAVEFORM += ["model.attention_levels=[]", "model.patch_size=4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("sounds")
    run("train", *TINY, *SPECTRUM, "run_dir=stft", cwd=place)
    run("train", *TINY, *WAVEFORM, "run_dir=waveform", cwd=place)
    return place


def draw(place, out, *more, model="stft", check=True):
    knobs = ["sampler.num_steps=3", "num_images=5", *more, f"out_dir={out}"]
    return run("sample", f"ckpt={model}", *knobs, cwd=place, check=check)


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def sounds(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "sounds").glob("*.wav"))}


@pytest.mark.parametrize("model", ["stft", "waveform"])
def test_training_leaves_previews_that_can_be_seen_and_heard(place, model):
    names = sorted(path.name for path in (place / model / "samples").iterdir())
    kinds = ("step_000000{}.png", "step_000000{}.wav", "walk_000000{}.png")
    assert names == [kind.format(step) for kind in kinds[:1] for step in ("06",)] + [
        "step_00000006.wav", "step_00000012.png", "step_00000012.wav", "walk_00000006.png", "walk_00000012.png"
    ]  # fmt: skip
    board = EventAccumulator(str(place / model / "tensorboard"), {"audio": 0, "images": 0})
    board.Reload()
    audio, images = board.Tags()["audio"], board.Tags()["images"]
    assert audio == ["samples/sounds"] and "samples/from_noise_to_sound" in images
    assert not set(audio) & set(images)  # TensorBoard would show one of the two
    (*_, last) = board.Audio("samples/sounds")
    assert last.sample_rate == 8000 and last.step == 12
    assert len(read_wav(place / model / "samples/step_00000012.wav")) == 4 * (600 + 1600)


@pytest.mark.parametrize(("model", "knobs"), [("stft", SPECTRUM), ("waveform", WAVEFORM)])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(place, model, knobs):
    folder = f"stopped_{model}"
    run("train", *TINY, *knobs, "training.stop_at=5", f"run_dir={folder}", cwd=place)
    run("train", f"resume={folder}", cwd=place)
    contents = (torch.load(place / f / "checkpoints/step_00000012.pt", weights_only=True) for f in (model, folder))
    first, second = map(tensors, contents)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("model", ["stft", "waveform"])
def test_sounds_are_written_alike_in_whatever_batches(place, model):
    done = draw(place, f"whole_{model}", "labels=each", model=model)
    folder = place / f"whole_{model}"
    assert done.stdout.splitlines() == [str(folder)] and "5 sounds" in done.stderr
    assert list(sounds(folder)) == [f"{k:06d}.wav" for k in range(5)]
    assert {"grid.png", "grid.wav", "samples.npz", "sampling.json"} <= {p.name for p in folder.iterdir()}
    with np.load(folder / "samples.npz") as arrays:
        assert arrays["sounds"].shape == (5, 600) and arrays["sounds"].dtype == np.int16
        assert arrays["sample_rate"] == 8000 and arrays["labels"].tolist() == [0, 1, 2, 3, 0]
        assert (arrays["sounds"][3] == read_wav(folder / "sounds/000003.wav")).all()
    draw(place, f"pieces_{model}", "labels=each", "batch_size=2", model=model)
    assert sounds(place / f"pieces_{model}") == sounds(folder)
    removed = folder / "sounds/000001.wav"
    before = removed.read_bytes()
    removed.unlink()
    draw(place, f"whole_{model}", "labels=each", model=model)
    assert removed.read_bytes() == before
    (place / f"killed_{model}" / "sounds").mkdir(parents=True)  # before the record was written
    draw(place, f"killed_{model}", "labels=each", model=model)
    assert sounds(place / f"killed_{model}") == sounds(folder)


@pytest.mark.slow
def test_two_ranks_train_and_draw_as_one(place):
    run("train", *TINY, *SPECTRUM, "devices=2", "run_dir=two_ranks", cwd=place)
    one, two = (losses(place / folder) for folder in ("stft", "two_ranks"))
    assert len(one) == 3 and one == pytest.approx(two, rel=1e-5)
    draw(place, "by_one", "batch_size=2")
    draw(place, "by_two", "batch_size=2", "devices=2")
    assert sounds(place / "by_one") == sounds(place / "by_two")


@pytest.mark.parametrize("sampler", options_of("sampler"))
def test_every_sampler_draws_sounds_also_with_guidance(place, sampler):
    out = f"by_{sampler}"
    steps = ["sampler.num_steps=4"] if sampler == "edm" else []
    draw(place, out, f"sampler={sampler}", *steps, "labels=each", "guidance.scale=2", model="waveform")
    assert len(sounds(place / out)) == 5


@pytest.mark.parametrize("model", ["stft", "waveform"])
def test_a_gap_is_filled_and_what_is_known_of_the_recording_stays(place, model):
    draw(place, f"real_{model}", "labels=each", model=model)
    real = place / f"real_{model}/sounds/000002.wav"
    knobs = ["edit=inpaint", f"edit.sound={real}", "edit.gap=[0.03,0.045]", "edit.resample=2"]
    run("sample", f"ckpt={model}", *knobs, "sampler.num_steps=3", "sampler.eta=1", f"out_dir=gap_{model}", cwd=place)
    made, known = (read_wav(path).astype(int) for path in (place / f"gap_{model}/sounds/000000.wav", real))
    known = known * (0.95 * 32767 / abs(known).max())  # recordings are brought to one peak
    assert abs(made - known)[:200].max() < 200 and abs(made - known)[400:].max() < 200
    assert abs(made - known)[240:360].max() > 500
    assert (place / f"gap_{model}/side_by_side.png").exists()


def test_other_edits_make_as_many_sounds_as_they_should(place):
    draw(place, "two", "labels=each")
    one, other = (place / f"two/sounds/00000{k}.wav" for k in (0, 1))
    for words, count in (
        ([f"edit.sound={place / 'two/sounds'}", "edit=sdedit", "edit.strength=0.7"], 5),
        ([f"edit.sound={one}", "edit=reconstruct"], 1),
        ([f"edit.sound={one}", "edit=interpolate", f"edit.to={other}", "edit.frames=3"], 3),
    ):
        out = words[1].replace("=", "_")
        run("sample", "ckpt=stft", *words, "sampler.num_steps=3", f"out_dir={out}", cwd=place)
        assert len(sounds(place / out)) == count


def test_sounds_are_evaluated_and_reported_with_players(place):
    knobs = ["metrics=[accuracy,fid]", "num_images=12", "features.num_steps=20", "sampler.num_steps=3", "labels=each"]
    run("eval", "ckpt=stft", *knobs, "out_dir=eval", f"data_root={place}", cwd=place, check=False)
    run("eval", "ckpt=stft", *knobs, "out_dir=eval", cwd=place)
    told = json.loads((place / "eval/evaluation.json").read_text())
    assert told["features"]["resize"].startswith("log-mel") and told["features"]["num_classes"] == 4
    assert 0 <= told["metrics"]["accuracy"]["value"] <= 1 and told["metrics"]["accuracy"]["floor"] >= 0.2
    assert {"grid.png", "grid.wav"} <= {path.name for path in (place / "eval").iterdir()}
    draw(place, "heard", "labels=each")
    run("report", "stft", "heard", "eval", "out=report.html", cwd=place)
    page = (place / "report.html").read_text()
    assert page.count("<audio") >= 3 and "data:audio/wav;base64," in page


V = ["schedule=cosine", "prediction=v", "weighting=v", "timesteps=stratified"]
OTHERS = [["loss=hybrid", "variance=learned_range", *V], ["prediction=epsilon", "schedule=linear"]]


@pytest.mark.parametrize("words", OTHERS)
def test_other_losses_and_predictions_train_and_sigma_is_measured(place, words):
    run("train", *TINY, *SPECTRUM, *words, f"run_dir={words[0]}", cwd=place)
    if "loss=hybrid" not in words:
        run("analytic", f"ckpt={words[0]}", "num_images=8", "num_levels=5", cwd=place)
        draw(place, "analytic", "sampler=ancestral", "variance=analytic", model=words[0])
        assert len(sounds(place / "analytic")) == 5


def test_a_run_measures_itself_by_its_sounds(place):
    knobs = ["eval_every=12", "eval.metrics=[accuracy]", "eval.num_images=8", "features=classifier"]
    knobs += ["features.num_steps=5", "training.keep_best=accuracy"]
    run("train", *TINY, *SPECTRUM, *knobs, "run_dir=m", cwd=place)
    lines = [json.loads(line) for line in (place / "m/metrics.jsonl").read_text().splitlines()]
    assert [line["eval/accuracy"] for line in lines if "eval/accuracy" in line]
    assert (place / "m/checkpoints/best.pt").exists()


@pytest.mark.parametrize(
    ("command", "words", "told"),
    [
        ("train", ["representation=stft"], "representation is of sounds, and this dataset is of images"),
        ("train", [*TINY, "representation=waveform"], "takes items of 2 dimensions, not 1x600; choose model=unet1d"),
        ("train", [*TINY, "model=unet1d"], "takes items of 1 dimensions, not 2x"),
        ("train", [*TINY, *WAVEFORM, "dataset.num_samples=601"], "set dataset.num_samples=608"),
        ("train", [*TINY, "dataset.sample_rate=10"], "dataset.sample_rate must be a whole number"),
        ("train", [*TINY, "representation.hop=100"], "representation.hop=100 must be at most half"),
        ("train", [*TINY, *SPECTRUM, "training.augment=0.1"], "training.augment=0.1"),
        ("train", [*TINY, *SPECTRUM, "eval_every=5", "eval.metrics=[nll]"], "eval.metrics: nll is of images"),
        ("train", [*TINY, *SPECTRUM, "dataset.channels=1"], "dataset.channels=1: the representation makes 2"),
        ("train", ["dataset=tones", "dataset.num_classes=null"], "dataset.num_classes must be a whole number"),
        ("train", ["dataset=digits", "dataset.num_classes=null"], "dataset.num_classes must be a whole number"),
        ("train", [*TINY, "dataset.flip=true"], "unknown key dataset.flip"),
        ("train", ["dataset=tones", "representation=waveform", "model=cnn"], "choose model=unet1d"),
        ("train", ["dataset=tones", "representation=waveform", "model=dit_small"], "choose model=unet1d"),
        ("sample", ["ckpt=stft", "edit=inpaint", "edit.sound=stft/samples"], "edit.gap: say from when to when"),
        ("sample", ["ckpt=stft", "edit=sdedit", "edit.sound=a.wav"], "edit.sound=a.wav: no such file or folder"),
        ("sample", ["ckpt=stft", "edit=sdedit", "edit.image=stft/samples"], "edit.image: the model draws sounds"),
        ("sample", ["ckpt=stft", "edit=sdedit"], "edit.image is required"),
        ("sample", ["ckpt=stft", "edit=sdedit", "edit.sound=stft", "edit.image=stft"], "leave one of the two out"),
        ("eval", ["ckpt=stft", "metrics=[nll]"], "metrics: nll of sounds cannot be had"),
        ("eval", ["ckpt=stft", "metrics=[fid,memorisation]"], "metrics: memorisation of sounds cannot be had"),
        ("eval", ["ckpt=stft", "metrics=[accuracy]", "labels=none"], "accuracy is of images drawn for a class"),
        ("eval", ["ckpt=stft", "data=digits"], "data=digits are images, and what is measured is sounds"),
        ("eval", ["ckpt=stft", "features=inception"], "features=inception are of images"),
        ("eval", ["images=stft/samples", "data=tones", "metrics=[fid]"], "data=tones are sounds"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(place, command, words, told):
    done = run(command, *words, cwd=place, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert told in done.stderr and len(done.stderr.split("error: ")[-1].strip().splitlines()) <= 3
