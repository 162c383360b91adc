"""Conditions: what is made of an image, that it goes with the image, and what networks make of it."""

import numpy as np
import pytest
import torch
from PIL import Image as Pictures

from ddpm_cli.build.transfer import transferred
from ddpm_cli.data.conditions import Conditions, Grey, Image, LowResolution, Mask, Vector, read_vectors
from ddpm_cli.data.image_folder import image_folder
from ddpm_cli.data.loading.augment import GeometricAugment
from ddpm_cli.data.loading.batches import Batches
from ddpm_cli.data.shapes import shapes
from ddpm_cli.data.store import Store
from ddpm_cli.diffusion import prediction, schedule, variance
from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.guidance import classifier_free
from ddpm_cli.errors import UserError
from ddpm_cli.media.images import from_uint8
from ddpm_cli.models.cnn import CNN
from ddpm_cli.models.ddpmpp import DDPMpp
from ddpm_cli.models.dit import DiT
from ddpm_cli.models.edm2 import EDM2
from ddpm_cli.models.unet import UNet
from ddpm_cli.training.random_numbers import Draws
from ddpm_cli.training.step import TrainStep

CPU = torch.device("cpu")
SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def store():
    return shapes(num_images=40, seed=0, split="train", channels=3, image_size=8, num_classes=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of the same pictures, with other endings in the second."""
    place, images = (
        tmp_path_factory.mktemp("pairs"),
        shapes(num_images=13, seed=1, split="train", channels=3, image_size=8, num_classes=2),
    )
    for k, pixels in enumerate(images.items):
        for name, ending in (("photos", "png"), ("edges", "bmp")):
            file = place / name / "ab"[k % 2] / f"{k:02d}.{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Pictures.fromarray(pixels.movedim(0, -1).numpy()).save(file)
    return place


def node(folders, **changed):
    known = {"root": str(folders / "photos"), "cache": None, "split": "all", "channels": 3, "image_size": 8}
    known |= {"num_classes": 2, "dtype": "uint8", "on_error": "stop", "max_skipped": 0.01, **changed}
    return {"_target_": "ddpm_cli.data.image_folder.image_folder", **known}


def pairs(folders, **changed):
    dataset = node(folders, **changed)
    photos = image_folder(**{key: value for key, value in dataset.items() if key != "_target_"})
    return Conditions.of(Image(str(folders / "edges"), 3), dataset, photos)


def test_low_resolution_is_the_mean_of_squares_enlarged():
    x_0 = torch.rand(2, 3, 8, 4) * 2 - 1
    given = LowResolution(2).given(x_0, None)
    assert given.shape[1:] == LowResolution(2).given_shape((3, 8, 4)) == (3, 4, 2)
    naive = [[x_0[0, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for j in range(2)] for i in range(4)]
    assert torch.allclose(given[0, 0], torch.tensor(naive), atol=1e-6)
    plain = torch.full((1, 3, 4, 2), 0.3)
    assert torch.allclose(LowResolution(2).shown(plain, None), torch.full((1, 3, 8, 4), 0.3), atol=1e-6)
    with pytest.raises(ValueError, match="must divide"):
        LowResolution(3).given_shape(SHAPE)


def test_grey_is_pillows():
    pixels = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grey = np.array(Pictures.fromarray(pixels[0].movedim(0, -1).numpy()).convert("L"))
    found = Grey().given(from_uint8(pixels), None)
    assert found.shape == (1, 1, 8, 8) and np.abs((found[0, 0].numpy() + 1) * 127.5 - grey).max() <= 0.51
    with pytest.raises(ValueError, match="in colour"):
        Grey().given_shape((1, 8, 8))


def test_a_mask_hides_a_rectangle_and_tells_where():
    mask, x_0 = Mask((0.25, 0.75)), torch.rand(500, 3, 16, 8) + 0.1
    holes = mask.holes(torch.rand(500, 4), (3, 16, 8))
    rows, columns = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert torch.equal(holes.flatten(1).sum(1), rows * columns), "rectangles"
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 12, 2, 6)
    assert holes[:, 0].float().mean(0).min() > 0, "every pixel is hidden now and then"
    shown = mask.shown(x_0, holes)
    assert shown.shape == (500, 4, 16, 8) and mask.num_shown((3, 16, 8)) == 4
    assert torch.equal(shown[:, 3:] == 1, holes) and torch.equal(shown[:, :3], torch.where(holes, 0.0, x_0))


@pytest.mark.parametrize("condition", [LowResolution(2), Grey(), Mask()])
def test_a_condition_is_a_function_of_the_image_and_its_place(store, condition):
    beside = Conditions.of(condition, {}, store).in_batches(16, 5, True, CPU)
    x_0, _ = Batches(store, 16, 5, True, CPU).batch(3)
    whole = beside.cond(x_0, None, 3, slice(0, 16))["condition"]
    assert whole.shape == (16, condition.num_shown(SHAPE), 8, 8) and whole.abs().max() < 1.5
    for rows in (slice(4, 9), slice(2, 16, 2)):
        assert torch.equal(beside.cond(x_0[rows], None, 3, rows)["condition"], whole[rows])
    another = beside.cond(x_0, None, 4, slice(0, 16))["condition"]
    assert torch.equal(another, whole) != condition.masked
    fixed = Conditions.of(condition, {}, store)
    rows = torch.tensor([7, 3])
    assert torch.equal(fixed.cond(rows)["condition"], fixed.cond(rows.flip(0))["condition"].flip(0))


def test_another_image_is_mirrored_and_augmented_with_its_own(folders):
    conditions = pairs(folders)
    photos, draws = conditions.store, Draws(0, 12, CPU)
    settings = type("Settings", (), {"null_label": None, "batch_size": 12})
    for augment in (None, GeometricAugment(0.9)):
        step = TrainStep(
            None, None, None, Batches(photos, 12, 0, True, CPU).batch, draws, settings, augment,
            conditions.in_batches(12, 0, True, CPU),
        )  # fmt: skip
        for number in (0, 1, 2):
            x_0, cond = step._images(number, slice(0, 12, 1), torch.zeros(12, dtype=torch.bool))
            assert torch.equal(cond["condition"], x_0), "the second folder holds the same pictures"


def test_files_are_paired_by_their_names_in_every_split(folders):
    for split, count in (("train", 11), ("test", 2)):
        conditions = pairs(folders, split=split)
        assert len(conditions.store) == len(conditions.beside) == count
        assert torch.equal(conditions.store.items, conditions.beside.items)
    photo = folders / "photos/a/99.png"
    photo.write_bytes((folders / "photos/a/00.png").read_bytes())
    with pytest.raises(UserError, match="99.png"):
        pairs(folders)
    photo.unlink()
    with pytest.raises(UserError, match="dataset=image_folder"):
        Image(str(folders / "edges"), 3).beside({"_target_": "ddpm_cli.data.digits.digits"}, pairs(folders).store)


def test_vectors_go_with_their_items(store, tmp_path):
    numbers = store.items.float().flatten(1)[:, :5].contiguous()
    np.save(tmp_path / "v.npy", numbers.numpy())
    conditions = Conditions.of(Vector(str(tmp_path / "v.npy"), 5), {}, store)
    beside, batches = conditions.in_batches(16, 5, True, CPU), Batches(store, 16, 5, False, CPU)
    for step in (0, 3):
        x_0, _ = batches.batch(step, 2, 9)
        vector = beside.cond(x_0, beside.beside(step, 2, 9), step, slice(2, 9))["vector"]
        assert torch.allclose((vector / 127.5) - 1, x_0.flatten(1)[:, :5], atol=1e-5)
    part = Store(store.items[torch.arange(40) % 6 == 5], None, (), "part", "")
    of_split = Vector(str(tmp_path / "v.npy"), 5).beside({"split": "test"}, part)
    assert torch.equal(of_split.items, numbers[5::6])
    for dataset, items in (({}, part), ({"split": "test"}, store)):  # the second: other items, as many by chance
        with pytest.raises(UserError, match="one row for each"):
            Vector(str(tmp_path / "v.npy"), 5).beside(dataset, items)
    with pytest.raises(UserError, match="rows of 5"):
        Vector(str(tmp_path / "v.npy"), 4).beside({}, store)


COMMON = {"in_channels": 4, "out_channels": 3, "num_classes": 5, "class_conditional": True, "vector_dim": 6}
LEVELS = {"channels": 8, "channel_mult": [1, 2], "blocks_per_level": 1, "attention_levels": [1], "dropout": 0.0}
NETWORKS = {
    "unet": lambda: UNet(**COMMON, **LEVELS),
    "ddpmpp": lambda: DDPMpp(**COMMON, **LEVELS, augment_dim=0),
    "dit": lambda: DiT(**COMMON, channels=16, depth=1, heads=2, patch_size=2, mlp_ratio=2),
    "cnn": lambda: CNN(**COMMON, channels=[8, 16]),
    "edm2": lambda: EDM2(**COMMON, **LEVELS, time_span=999.0),
}


@pytest.mark.parametrize(("name", "silent"), [("unet", True), ("edm2", False)])
def test_a_vector_begins_without_effect_where_it_can(name, silent):
    network = NETWORKS[name]()
    saved = {key: weight for key, weight in network.state_dict().items() if not key.startswith("vector_embedding")}
    begun = transferred(network, saved, "x")["vector_embedding.weight"]
    assert (begun.abs().sum() == 0) == silent and (silent or torch.equal(begun, network.vector_embedding.weight))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_take_channels_and_vectors(name, request):
    network = NETWORKS[name]()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    denoiser = Denoiser(network.eval(), schedule.cosine(), prediction.V(), variance.FixedSmall())
    x_t, t = torch.randn(2, 3, 8, 8), torch.tensor([10, 900])
    cond = {"labels": torch.tensor([1, 5]), "condition": torch.randn(2, 1, 8, 8)}
    with torch.no_grad():
        plain = denoiser(x_t, t, cond).x_0
        assert plain.shape == x_t.shape
        zero = denoiser(x_t, t, {**cond, "vector": torch.zeros(2, 6)}).x_0
        for changed in ({"condition": torch.zeros(2, 1, 8, 8)}, {"vector": torch.ones(2, 6)}):
            assert not torch.allclose(denoiser(x_t, t, {**cond, **changed}).x_0, plain)
        if name != "edm2":  # which adds at constant magnitude
            network.vector_embedding.bias.zero_()
            assert torch.allclose(denoiser(x_t, t, {**cond, "vector": torch.zeros(2, 6)}).x_0, plain, atol=1e-5)
    assert zero.shape == plain.shape


def test_a_condition_is_not_scaled_with_the_noisy_image_and_guidance_keeps_it():
    seen = []

    class Network(torch.nn.Module):
        def forward(self, x, time, cond):
            seen.append(x)
            return x[:, :1]

    denoiser = Denoiser(Network(), schedule.edm(), prediction.EDM(), variance.FixedSmall())
    x_t, shown = torch.randn(2, 1, 4, 4) * 50, torch.randn(2, 1, 4, 4)
    for t in (torch.tensor(900.0), torch.tensor([900.0, 900.0])):
        denoiser(x_t, t, {"condition": shown})
        assert torch.equal(seen[-1][:, 1:], shown) and not torch.allclose(seen[-1][:, :1], x_t)
    asked = []

    def denoise(x_t, t, cond):
        asked.append(cond)
        return Denoised(x_t)

    classifier_free(denoise, 7)(x_t, torch.tensor(3.0), {"labels": torch.tensor([1, 2]), "condition": shown})
    assert asked[0]["labels"].tolist() == [1, 2, 7, 7]
    assert torch.equal(asked[0]["condition"], torch.cat([shown, shown]))


def test_vectors_that_cannot_be_read_are_named(tmp_path):
    np.savez(tmp_path / "half.npz", rows=np.zeros((9, 3)))
    (tmp_path / "half.npz").write_bytes((tmp_path / "half.npz").read_bytes()[:100])
    (tmp_path / "text.npy").write_text("none")
    for name in ("half.npz", "text.npy"):
        with pytest.raises(UserError, match=rf"condition\.path: cannot read numbers from .*{name}"):
            read_vectors(tmp_path / name, "condition.path")
