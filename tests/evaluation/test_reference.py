"""Features of real images: made once, in random order, and the floor they score among themselves."""

import logging
from dataclasses import dataclass

import pytest
import torch

from ddpm_cli.config.check import configuration
from ddpm_cli.data.shapes import shapes
from ddpm_cli.data.store import Store
from ddpm_cli.evaluation.cache import cache_dir_of
from ddpm_cli.evaluation.features.base import Extracted
from ddpm_cli.evaluation.reference import floor, held_out, reference


@dataclass
class Pixels:
    """Six pixels as features."""

    sha256: str = "0" * 64
    resize: str = "none"
    name: str = "pixels"
    num_features: int = 6
    num_classes: int | None = 2
    images_seen: int = 0

    def __call__(self, images):
        self.images_seen += len(images)
        x = images.flatten(1)[:, 20:80:10].float()
        return Extracted(x, torch.stack([x[:, 0] / 255, 1 - x[:, 0] / 255], 1))

    def describe(self):
        return {}


def shapes_of(split="train", num_images=300):
    return shapes(num_images=num_images, seed=0, split=split, channels=1, image_size=16, num_classes=4)


def test_the_features_are_made_once_for_each_extractor_and_resize(tmp_path):
    features, store = Pixels(), shapes_of()
    first = reference(store, features, tmp_path, split="train")
    again = reference(store, features, tmp_path, split="train")
    assert features.images_seen == 300 and torch.equal(first.features, again.features)
    assert torch.equal(first.probabilities, again.probabilities)
    for change in ({"sha256": "1" * 64}, {"resize": "other"}):
        other = Pixels(**change)
        reference(store, other, tmp_path, split="train")
        assert other.images_seen == 300
    reference(shapes_of("test"), features, tmp_path, split="test")
    assert features.images_seen == 300 + 300
    assert first.describe() == {
        "dataset": "shapes-train", "split": "train", "num_images": 300, "fingerprint": store.fingerprint
    }  # fmt: skip


def test_a_damaged_cache_is_made_anew(tmp_path, caplog):
    features, store = Pixels(), shapes_of()
    first = reference(store, features, tmp_path, split="train")
    (file,) = tmp_path.glob("reference-shapes-train-pixels-*.npz")
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 16
    for damaged in (bytes(flipped), whole[: len(whole) // 2], b"", b"PK"):
        file.write_bytes(damaged)
        with caplog.at_level(logging.WARNING, "ddpm_cli"):
            again = reference(store, features, tmp_path, split="train")
        assert torch.equal(first.features, again.features) and file.read_bytes() == whole
        assert "damaged" in caplog.text
        caplog.clear()
    assert features.images_seen == 5 * 300
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_any_first_images_of_a_reference_stand_for_all(tmp_path):
    store = shapes_of()
    in_order = Store(store.items, store.labels.sort().values, store.class_names, "sorted", "1")
    whole = reference(in_order, Pixels(), tmp_path, split="train")
    assert in_order.labels[whole.rows[:100]].bincount().min() > 15  # of 25
    assert torch.equal(whole.features, Pixels()(in_order.items[whole.rows]).features)


@pytest.mark.parametrize("name", ["fid", "kid", "precision_recall", "inception_score"])
def test_the_floor_is_of_real_images_beside_real_ones(tmp_path, name):
    real = reference(shapes_of(), Pixels(), tmp_path, split="train")
    other = reference(shapes_of("test"), Pixels(), tmp_path, split="test")
    for found, n in ((floor(name, real, other, 200), 200), (floor(name, real, None, 200), 150)):
        assert {score.n for score in found.values()} == {n}
        worse = floor(name, real, reference(noisy(shapes_of("test")), Pixels(), tmp_path, split="test"), n)
        for key, score in found.items():
            assert name == "inception_score" or (score.value < worse[key].value) == (score.better == "lower"), key


def noisy(store):
    noise = torch.randint(0, 256, store.items.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Store(store.items // 2 + noise // 2, store.labels, store.class_names, "noisy", "2")


def test_the_other_split_of_a_set_is_held_out():
    store, split = held_out(configuration("train", "dataset=digits"))
    assert (store.name, split, len(store)) == ("digits-test", "test", 299)
    assert held_out(configuration("train", "dataset=digits", "dataset.split=test"))[1] == "train"
    assert held_out(configuration("train", "dataset=digits", "dataset.split=all")) is None


def test_what_is_made_lies_in_the_data_sets_cache():
    assert str(cache_dir_of({"root": "x", "cache": None})) == "x/.prepared"
    assert str(cache_dir_of({"root": "x", "cache": "y"})) == "y"
    assert str(cache_dir_of({"split": "train"})) == "data/.prepared"
