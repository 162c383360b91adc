"""ddpm-sample's work in one process, on small untrained networks: every sampler, guidance, edits, going on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_cli.build.model import build_denoiser
from ddpm_cli.cli.flags import with_quotes
from ddpm_cli.config.check import configuration
from ddpm_cli.config.context import Context
from ddpm_cli.errors import UserError
from ddpm_cli.run_dir import checkpoint
from ddpm_cli.sampling import pictures
from ddpm_cli.sampling.measure_variance import run_analytic
from ddpm_cli.sampling.run import run_sampling

TINY = (
    "dataset=shapes dataset.image_size=8 dataset.channels=1 model.channels=8 model.patch_size=1 "
    "model.channel_mult=[1,2] model.blocks_per_level=1 schedule.num_timesteps=50"
).split()
SAMPLERS = sorted(path.stem for path in (Path(__file__).parents[2] / "configs" / "sampler").glob("*.yaml"))
MODELS = {"vp": [], "edm": ["schedule=edm", "prediction=edm"], "plain": ["model.class_conditional=false"]}
MODELS["labelled"] = ["training.label_dropout=0"]


def composed(command, *overrides):
    return configuration(command, *with_quotes(overrides))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an untrained checkpoint of each kind, another of vp (weak), and images to edit."""
    folder = tmp_path_factory.mktemp("pipeline")
    for name, overrides in [*MODELS.items(), ("weak", [])]:
        cfg = composed("train", *TINY, "sampler.num_steps=5", *[o for o in overrides if "linear" not in o])
        torch.manual_seed(len(name))
        network = build_denoiser(cfg).network
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        weights = network.state_dict()
        content = {"step": 1, "config": cfg, "network": weights, "emas": {"ema": weights}}
        content["data"] = {"class_names": ["disc", "square", "triangle", "cross"] if name == "vp" else "nonsense"}
        checkpoint.save(folder / f"{name}.pt", content)
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(folder / "photos" / "a.png")
    Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / "photos" / "b.png")
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(folder / "black.png")
    (folder / "text.png").write_text("none")
    return folder


@pytest.fixture
def draw(place, tmp_path, capsys):
    """Draws with the given overrides into a folder: (images, folder)."""

    def run(model, *overrides, out="out"):
        typed = [f"ckpt={place / model}.pt", "precision=fp32", *overrides]
        run_sampling(composed("sample", *typed), Context(tmp_path / out, typed))
        assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / out)
        return np.load(tmp_path / out / "samples.npz")["images"], tmp_path / out

    return run


def same(one, other):
    return np.abs(one.astype(int) - other.astype(int)).max() <= 1


@pytest.mark.parametrize("model", ["vp", "edm"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_image_k_alike_alone_and_in_a_batch(draw, sampler, model):
    knobs = [f"sampler={sampler}", "sampler.num_steps=4", "num_images=3"]
    together, _ = draw(model, *knobs)
    alone, _ = draw(model, *knobs, "batch_size=1", out="alone")
    assert together.shape == (3, 8, 8, 1) and same(together, alone)
    assert not same(together[0], together[1])


@pytest.mark.parametrize(
    "knobs",
    [
        ["guidance.scale=3"],
        ["guidance.scale=3", "guidance.interval=[0.2,2]", "guidance.rescale=0.7"],
        ["guidance.scale=3", "guidance.apg.parallel=0", "guidance.apg.max_norm=0.1", "guidance.apg.momentum=-0.5"],
        ["guidance.cads.noise=0.3"],
        ["guidance.scale=2", "guidance.cads.noise=0.3"],
        ["clip=dynamic"],
        ["clip=false"],
        ["sampler.spacing=log_snr"],
        ["sampler.spacing=[50,20,1.5,0]"],
    ],
    ids=" ".join,
)
def test_guidance_clipping_and_spacing_change_the_images_not_their_independence(draw, knobs):
    base = ["sampler.num_steps=4", "num_images=3", "labels=[0,1]"]
    plain, _ = draw("vp", *base)
    together, _ = draw("vp", *base, *knobs, out="together")
    alone, _ = draw("vp", *base, *knobs, "batch_size=2", out="alone")
    assert same(together, alone) and not np.array_equal(together, plain)


def test_autoguidance_takes_another_checkpoint_also_without_classes(draw, place):
    base = ["sampler.num_steps=4", "num_images=2"]
    for model, guide in (("vp", "weak"), ("plain", "weak"), ("labelled", "weak")):
        off, _ = draw(model, *base, out=f"off-{model}")
        on, _ = draw(model, *base, "guidance.scale=2", f"guidance.guide_ckpt={place}/{guide}.pt", out=f"on-{model}")
        assert not np.array_equal(on, off)


@pytest.mark.parametrize(
    ("model", "knobs", "told"),
    [
        ("vp", ["guidance.scale=2", "guidance.guide_ckpt=PLACE/edm.pt"], "guidance.guide_ckpt"),
        ("plain", ["guidance.scale=2"], "class-conditional"),
        ("plain", ["guidance.cads.noise=0.1"], "class-conditional"),
        ("labelled", ["guidance.scale=2"], "guidance.scale=2: .*label_dropout=0 .*label_dropout=0.1, or .*guide_ckpt"),
        ("labelled", ["labels=none"], "labels=none: .*label_dropout=0 .*null label; choose labels=each"),
        ("labelled", ["edit=sdedit", "edit.image=PLACE/photos"], "an edit without labels: .*null label"),
        ("vp", ["labels=[4]"], r"0\.\.3 \(the checkpoint's classes: 0 disc, 1 square, 2 triangle, 3 cross\), got 4"),
        ("vp", ["labels=[disc,cat]"], "3 cross.*, got cat"),
        ("weak", ["labels=disc"], r"0\.\.3 \(the checkpoint's classes\), got disc"),
        ("vp", ["sampler.spacing=[60,0]"], "sampler.spacing"),
        ("vp", ["sampler.spacing=leading", "sampler.num_steps=51"], "sampler.num_steps"),
        ("vp", ["guidance.scale=2", "guidance.interval=[2,1]"], "guidance.interval"),
        ("vp", ["guidance.cads.noise=0.1", "guidance.cads.start=0.95"], "guidance.cads.start"),
        ("vp", ["edit=reconstruct", "edit.image=PLACE/photos", "sampler.eta=1"], "sampler.eta=0"),
        (
            "vp",
            ["edit=reconstruct", "edit.image=PLACE/photos", "guidance.scale=2", "guidance.apg.momentum=-0.5"],
            "guidance.apg.momentum",
        ),
        ("vp", ["edit=sdedit", "edit.image=PLACE/photos", "edit.strength=0.01"], "edit.strength"),
        ("vp", ["edit=inpaint", "edit.image=PLACE/photos", "edit.mask=PLACE/black.png"], "edit.mask"),
        ("vp", ["edit=inpaint", "edit.image=PLACE/photos", "edit.mask=PLACE/text.png"], "text.png: not an image"),
        ("vp", ["edit=sdedit", "edit.image=PLACE/vp.pt"], "edit.image"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_in_a_line_before_anything_is_drawn(draw, place, model, knobs, told):
    with pytest.raises(UserError, match=told) as caught:
        draw(model, *[knob.replace("PLACE", str(place)) for knob in knobs])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        (["labels=none", "guidance.scale=2"], "labels=none: guidance.scale has no effect"),
        (["labels=none", "guidance.cads.noise=0.1"], "labels=none: guidance.cads has no effect"),
        (["guidance.apg.parallel=0"], "guidance.scale=1 is no guidance"),
        (["guidance.cads.end=0.8"], "guidance.cads.noise=0 is no noise"),
        (["guidance.scale=2", "guidance.guide_ckpt=PLACE/vp.pt"], "holds the same weights as ckpt"),
        (["sampler.spacing=[50,20,0]"], "sampler.num_steps=3 has no effect: sampler.spacing lists 2 steps"),
        (["labels=none", "guidance.scale=2", "guidance.guide_ckpt=PLACE/weak.pt"], None),
        (["guidance.scale=2", "guidance.cads.noise=0.1", "guidance.cads.end=0.8"], None),
        (["sampler.spacing=[50,20,10,0]"], None),
    ],
    ids=str,
)
def test_what_has_no_effect_is_said_in_a_line(draw, place, caplog, knobs, told):
    draw("vp", "num_images=1", "sampler.num_steps=3", *[knob.replace("PLACE", str(place)) for knob in knobs])
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == (told is not None) and (told is None or told in warned[0])


def test_labels_may_be_names_of_classes(draw):
    knobs = ["num_images=3", "sampler.num_steps=2"]
    images, folder = draw("vp", *knobs, "labels=[cross,0]")
    assert np.load(folder / "samples.npz")["labels"].tolist() == [3, 0, 3]
    again, _ = draw("vp", *knobs, "labels=[3,disc]")  # the same images: the folder is gone on with
    assert np.array_equal(images, again)
    _, folder = draw("vp", *knobs, "labels=square", out="one")
    assert np.load(folder / "samples.npz")["labels"].tolist() == [1, 1, 1]


# Going on


def test_an_interrupted_run_is_completed_and_more_images_are_added(draw):
    knobs = ["sampler=ancestral", "sampler.num_steps=4", "batch_size=2"]
    whole, folder = draw("vp", *knobs, "num_images=5")
    for k in (1, 4):
        (folder / "images" / f"{k:06d}.png").unlink()
        (folder / "images" / f".{k:06d}.png.99.tmp").touch()  # of a process that was killed
    kept = (folder / "images" / "000000.png").stat().st_mtime_ns
    again, _ = draw("vp", *knobs, "num_images=6")
    assert same(again[:5], whole) and len(again) == 6 and not list(folder.rglob("*.tmp"))
    assert (folder / "images" / "000000.png").stat().st_mtime_ns == kept


def test_images_of_other_settings_are_not_mixed_in(draw, tmp_path):
    draw("vp", "num_images=2", "sampler.num_steps=2")
    with pytest.raises(UserError, match=r"\(seed: 0, now 1\); choose another out_dir"):
        draw("vp", "num_images=2", "sampler.num_steps=2", "seed=1")
    (tmp_path / "out" / "sampling.json").unlink()
    with pytest.raises(UserError, match="unknown origin"):
        draw("vp", "num_images=2", "sampler.num_steps=2")


@pytest.fixture
def measured(place):
    """vp.pt with an analytic variance, which changes the file, not the weights; and another measurement of it."""
    for name, error in (("vp", 1.0), ("vp again", 0.5)):
        estimate = {"log_snr": torch.tensor([5.0, -5.0]), "noise_error": torch.tensor([error, 1.0])}
        content = checkpoint.load(place / "vp.pt")
        checkpoint.save(place / f"measured {name}.pt", {**content, "analytic": {"ema": estimate}})


def test_images_go_on_where_the_file_has_changed_but_not_what_they_are_drawn_with(draw, measured):
    knobs = ["sampler=ancestral", "sampler.num_steps=4"]
    _, folder = draw("vp", *knobs, "num_images=1")
    files = [json.loads((folder / "sampling.json").read_text())["sha256"]]
    draw("measured vp", *knobs, "num_images=2")
    files.append(json.loads((folder / "sampling.json").read_text())["sha256"])
    assert files[0] != files[1]
    with pytest.raises(UserError, match="drawn otherwise .model_sha256"):
        draw("weak", *knobs)
    draw("measured vp", *knobs, "variance=analytic", "num_images=1", out="analytic")
    with pytest.raises(UserError, match="drawn otherwise .model_sha256"):
        draw("measured vp again", *knobs, "variance=analytic", "num_images=1", out="analytic")


def test_the_spacing_in_use_is_recorded(draw):
    knobs = ["num_images=1", "sampler.num_steps=2"]
    for model, spacing in (("vp", "trailing"), ("edm", "karras")):
        _, folder = draw(model, *knobs, out=model)
        record = json.loads((folder / "sampling.json").read_text())
        assert record["sampler"]["spacing"] == spacing
        draw(model, *knobs, f"sampler.spacing={spacing}", out=model)
        (folder / "sampling.json").write_text(json.dumps({**record, "model_sha256": "0"}))
        with pytest.raises(UserError, match="drawn otherwise .model_sha256: 0, now"):
            draw(model, *knobs, out=model)


def test_drawing_and_measuring_pass_over_a_damaged_newest_checkpoint_alike(place, draw, tmp_path, capsys):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    good, bad = (folder / f"step_{step:08d}.pt" for step in (1, 2))
    good.write_bytes((place / "vp.pt").read_bytes())
    bad.write_bytes(good.read_bytes()[:-50])
    typed = [f"ckpt={tmp_path / 'run'}", "num_images=2", "num_levels=2", "precision=fp32"]
    run_analytic(composed("analytic", *typed), Context("ddpm-analytic", tmp_path, typed))
    assert capsys.readouterr().out.splitlines()[-1] == str(good)
    _, out = draw("vp", *typed[:2], "sampler=ancestral", "sampler.num_steps=2", "variance=analytic")
    assert json.loads((out / "sampling.json").read_text())["checkpoint"] == str(good)
    with pytest.raises(checkpoint.Damaged, match="step_00000002.pt is damaged"):
        run_analytic(composed("analytic", f"ckpt={bad}", *typed[1:]), Context("ddpm-analytic", tmp_path, typed))


# Animations


@pytest.mark.parametrize(
    "count,classes,columns", [(64, 3, 9), (100, 10, 10), (64, 10, 10), (5, 10, 10), (64, 1, 8), (64, 2, 8)]
)
def test_a_sheet_of_classes_is_about_square_and_each_column_is_of_one(count, classes, columns):
    assert pictures.columns_of(count, classes) == columns and columns % classes == 0


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_a_walk_is_animated_with_its_estimates(draw, sampler):
    _, folder = draw("edm", "num_images=2", f"sampler={sampler}", "sampler.num_steps=7", "animate=true")
    with Image.open(folder / "walk.gif") as animation:
        assert animation.n_frames == 7
    with Image.open(folder / "x_0.png") as strip:
        assert strip.width > 3 * strip.height


def test_a_long_walk_is_thinned_out(draw):
    _, folder = draw("vp", "num_images=1", "sampler.num_steps=230", "sampler.spacing=log_snr", "animate=true")
    with Image.open(folder / "walk.gif") as animation:
        assert 50 <= animation.n_frames <= 101


@pytest.mark.parametrize(("count", "shown"), [(1, [0]), (4, [0, 1, 2, 3]), (28, [0, 3, 6, 9, 12, 15, 18, 21, 24, 27])])
def test_a_strip_shows_ten_stages_at_most_from_the_first_to_the_last_a_row_an_image(count, shown):
    stages = [torch.full((2, 1, 48, 48), i, dtype=torch.uint8) for i in range(count)]
    strip = np.asarray(pictures.strip(pictures.shown(stages)))
    assert strip.shape == (2 * 50 + 2, len(shown) * 50 + 2)
    assert strip[25, 25::50].tolist() == strip[75, 25::50].tolist() == shown


# Edits


def pixels(file):
    with Image.open(file) as image:
        return np.asarray(image)


@pytest.mark.parametrize("model", ["vp", "edm"])
def test_inpainting_keeps_the_known_pixels_of_the_file(draw, place, model):
    knobs = ["edit=inpaint", f"edit.image={place}/photos/b.png", f"edit.mask={place}/mask.png", "edit.resample=2"]
    images, folder = draw(model, *knobs, "sampler.num_steps=3", "num_images=3")
    original = pixels(place / "photos" / "b.png")
    assert len(images) == 3 and not same(images[0], images[1])
    for image in images[..., 0]:
        assert np.array_equal(image[:, :4], original[:, :4]) and not np.array_equal(image[:, 4:], original[:, 4:])
    assert (folder / "side_by_side.png").exists()


def test_a_folder_is_edited_image_by_image_and_one_image_has_variations(draw, place):
    each, folder = draw("vp", "edit=sdedit", f"edit.image={place}/photos", "sampler.num_steps=10", "edit.strength=0.2")
    assert len(each) == 2 and np.load(folder / "samples.npz")["labels"].tolist() == [4, 4]  # the null label
    knobs = ["edit=sdedit", f"edit.image={place}/photos/b.png", "num_images=4", "labels=[1]"]
    variations, _ = draw("vp", *knobs, "sampler.num_steps=10", out="variations")
    assert len(variations) == 4 and not same(variations[0], variations[1])


def test_reconstruction_and_interpolation_make_as_many_images_as_they_should(draw, place):
    whole, folder = draw("vp", "edit=reconstruct", f"edit.image={place}/photos", "sampler.num_steps=20")
    assert len(whole) == 2
    assert json.loads((folder / "sampling.json").read_text())["edit"]["name"] == "Reconstruct"
    knobs = ["edit=interpolate", f"edit.image={place}/photos", f"edit.to={place}/mask.png", "edit.frames=3"]
    frames, folder = draw("vp", *knobs, "sampler.num_steps=20", "batch_size=4", "animate=true", out="between")
    assert len(frames) == 6
    with Image.open(folder / "side_by_side.png") as sheet:
        assert sheet.width / 5 == pytest.approx(sheet.height / 2, rel=0.1)  # two rows: image, three frames, image


def test_num_images_of_an_interpolation_span_the_whole_way(draw, place):
    ends = [f"edit.image={place}/photos/a.png", f"edit.to={place}/photos/b.png"]
    knobs = ["edit=interpolate", *ends, "sampler.num_steps=20"]
    five, _ = draw("vp", *knobs, "edit.frames=5", out="five")
    three, folder = draw("vp", *knobs, "num_images=3", out="three")
    assert len(three) == 3 and all(same(three[k], five[2 * k]) for k in range(3))
    assert json.loads((folder / "sampling.json").read_text())["edit"]["frames"] == 3
    for typed in (["num_images=3", "edit.frames=5"], ["num_images=1"], [f"edit.image={place}/photos", "num_images=5"]):
        with pytest.raises(UserError, match="num_images=[135] must be a multiple of .* edit.frames") as caught:
            draw("vp", *knobs, *typed, out="refused")
        assert len(str(caught.value).splitlines()) == 1
