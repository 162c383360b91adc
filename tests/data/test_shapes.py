"""The drawn shapes: a function of (seed, split, index)."""

import pytest
import torch

from ddpm_cli.data.shapes import KINDS, shapes
from ddpm_cli.errors import UserError

YAML = {"num_images": 64, "seed": 0, "split": "train", "channels": 3, "image_size": 16, "num_classes": 4}


def draw(**changed):
    return shapes(**{**YAML, **changed})


def test_an_image_depends_on_seed_split_and_index_alone():
    store = draw()
    assert torch.equal(store.items, draw().items)
    assert torch.equal(store.items[:10], draw(num_images=10).items)
    assert torch.equal(store.items, draw(num_images=9000).items[:64])  # drawn in another block
    others = [draw(seed=1), draw(split="test"), draw(seed=-1)]
    assert all((other.items != store.items).flatten(1).any(1).all() for other in others)
    assert len({store.fingerprint, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [1, 7, 32])
def test_any_size(channels, image_size):
    store = draw(channels=channels, image_size=image_size)
    assert store.items.shape == (64, channels, image_size, image_size) and store.items.dtype == torch.uint8


def test_classes_are_balanced_and_named():
    store = draw()
    assert store.class_names == KINDS and store.labels.bincount().tolist() == [16] * 4
    assert draw(num_classes=2).class_names == ("disc", "square")
    assert draw(num_classes=0).labels is None
    assert torch.equal(draw(num_classes=0).items, store.items)


def test_the_kinds_differ_in_the_square_they_fill():
    # of its bounding box a square covers most (tilted a little), then the disc, then triangle and cross
    store = draw(channels=1, image_size=64, num_images=400)
    covered = []
    for kind in range(4):
        bright = store.items[store.labels == kind, 0] > 140
        boxes = bright.any(1).sum(1) * bright.any(2).sum(1)
        covered.append((bright.sum((1, 2)) / boxes).median().item())
    disc, square, triangle, cross = covered
    assert disc == pytest.approx(torch.pi / 4, abs=0.02)
    assert square > disc > max(triangle, cross)


def test_shapes_lie_inside_their_image():
    items = draw(channels=1, image_size=64).items
    border = torch.cat([items[:, 0, 0], items[:, 0, -1], items[:, 0, :, 0], items[:, 0, :, -1]], 1)
    assert border.max() < 110  # only ground


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("split", "all"),
        ("channels", 4),
        ("num_classes", 5),
        ("num_classes", -1),
    ],
)
def test_bad_values_name_the_key(key, value):
    with pytest.raises(UserError, match=rf"^dataset\.{key} .*got {value!r}"):
        draw(**{key: value})


def test_a_set_too_large_for_memory_is_refused():
    with pytest.raises(UserError, match="GiB"):
        draw(num_images=2**31, image_size=1)
