"""Copies of training images are found, and real images that were held out are none."""

import numpy as np
import pytest
import torch

from ddpm_cli.data.digits import digits
from ddpm_cli.evaluation.memorisation import NEIGHBOURS, contact_sheet, memorised, nearest


@pytest.fixture(scope="module")
def sets():
    both = [digits(split=split, channels=1, image_size=8, num_classes=0).items for split in ("train", "test")]
    training, real = both[0].flatten(1).float(), both[1]
    return both[0], real[:150], real[150:], nearest(real[:150], both[0]), training


def test_the_nearest_and_their_ratio_are_those_of_a_naive_search(sets):
    _, held_out, _, found, flat = sets
    distances = torch.cdist(held_out.flatten(1).double(), flat.double(), compute_mode="donot_use_mm_for_euclid_dist")
    near = distances.topk(NEIGHBOURS, largest=False).values
    assert np.allclose(found.distance, near[:, 0]) and np.allclose(found.ratio, near[:, 0] / near.mean(1))
    assert np.allclose(distances[torch.arange(150), torch.from_numpy(found.index)], near[:, 0])


def test_a_copied_training_set_is_found_and_held_out_images_are_not(sets):
    training, _, others, known, _ = sets
    copies = memorised(nearest(training[:200], training), known)
    assert copies.value == 1 and copies.low > 0.9 and copies.extra["closer"] == 1
    real = memorised(nearest(others, training), known)
    assert real.low <= real.extra["floor"] <= real.high and real.value < 0.05
    assert real.extra["closer"] == pytest.approx(0.5, abs=0.1)


def test_one_copy_in_fifty_shows_and_so_does_one_with_a_little_noise(sets):
    training, _, others, known, _ = sets
    noise = torch.randint(-3, 4, training[:40].shape, generator=torch.Generator().manual_seed(0))
    copies = (training[:40].int() + noise).clamp(0, 255).to(torch.uint8)
    mixed = memorised(nearest(torch.cat([others, copies]), training), known)
    assert mixed.value > 0.2 and mixed.low > mixed.extra["floor"]


def test_copies_in_the_data_themselves_are_told_by_the_floor_and_do_not_hide_others(sets):
    training, held_out, others, _, _ = sets
    known = nearest(torch.cat([held_out, training[:10]]), training)  # the data set holds images twice
    assert memorised(nearest(training[:200], training), known).value == 1
    assert memorised(nearest(others, training), known).value == 0


def test_a_training_set_of_one_image_repeated_is_no_division_by_zero(sets):
    found = nearest(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(60, 1, 8, 8, dtype=torch.uint8))
    assert np.array_equal(found.ratio, np.zeros(3))


def test_the_sheet_shows_the_likeliest_copies_first_above_what_they_are_like(sets):
    training, _, others, _, _ = sets
    images = torch.cat([others[:20], training[7:8]])
    near = nearest(images, training)
    items, columns = contact_sheet(images.__getitem__, training.__getitem__, [near, near])
    assert columns == 16 and len(items) == 16 * 7  # twice an image and two neighbours, and a gap
    assert torch.equal(items[0], training[7]) and torch.equal(items[16], training[7])
    assert torch.equal(items[16 * 5 + 5 + 1], torch.full_like(items[0], 128))  # the second row is short
