"""EDM's augmentations: what is told to the network is what was done to the image."""

import math

import pytest
import torch

from ddpm_cli.data.loading.augment import NUM_DRAWS, NUM_LABELS, GeometricAugment

CALM = [0.9, 0.9, 0.9, 0.5, 0.9, 0.5, 0.9, 0.5, 0.9, 0.5, 0.9, 0.5, 0.5]  # nothing happens at probability 0.12


def draws(**changes):
    u = torch.tensor([CALM])
    for place, value in changes.items():
        u[0, int(place[1:])] = value
    return u


def image(size=16):
    """A bright spot right of and below the centre, on a dark ground."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (-1 + 2 * torch.exp(-((rows - 9.5) ** 2 + (columns - 11.5) ** 2) / 4)).reshape(1, 1, size, size)


def spot(x):
    """Where the bright spot is, (row, column) in pixels from the centre."""
    weight = (x[0, 0] + 1).clamp(min=0)
    middle = (torch.arange(x.shape[-1]) + 0.5) - x.shape[-1] / 2
    return float((weight.sum(1) * middle).sum() / weight.sum()), float((weight.sum(0) * middle).sum() / weight.sum())


def test_an_image_that_is_not_changed_stays_as_it_is_to_the_bit():
    x, labels = GeometricAugment(0.12)(image(), draws())
    assert torch.equal(x, image()) and labels.eq(0).all() and labels.shape == (1, NUM_LABELS)


def test_mirroring_is_exact_and_told():
    x, labels = GeometricAugment(0.12)(image(), draws(_0=0.1))
    assert torch.equal(x, image().flip(-1)) and labels[0].tolist() == [1] + [0] * 8
    x, labels = GeometricAugment(0.12)(image(), draws(_1=0.01))
    assert torch.equal(x, image().flip(-2)) and labels[0].tolist() == [0, 1] + [0] * 7


def test_a_quarter_turn_is_a_quarter_turn():
    x, labels = GeometricAugment(0.12)(image(), draws(_4=0.01, _5=0.75))  # angle pi / 2
    torch.testing.assert_close(labels[0, 3:5], torch.tensor([-1.0, 1.0]), rtol=0, atol=1e-6)
    assert any(torch.allclose(x, image().rot90(k, (2, 3)), atol=1e-4) for k in (1, 3))


def test_shift_and_scale_move_the_spot_by_what_is_told():
    row, column = spot(image())
    x, labels = GeometricAugment(0.12)(image(), draws(_10=0.01, _11=0.3))
    assert spot(x)[1] - column == pytest.approx(float(labels[0, 7]) * 0.125 * 16, abs=0.05)
    x, labels = GeometricAugment(0.12)(image(), draws(_2=0.01, _3=0.1))  # smaller
    factor = 2 ** (0.2 * float(labels[0, 2]))
    assert factor < 0.9
    assert spot(x) == pytest.approx((row * factor, column * factor), abs=0.15)


def test_stretching_along_an_axis_keeps_the_area():
    x, labels = GeometricAugment(0.12)(image(), draws(_6=0.01, _7=0.8))
    factor = 2 ** (0.2 * float(labels[0, 5]))
    row, column = spot(image())
    assert factor > 1.1 and spot(x) == pytest.approx((row / factor, column * factor), abs=0.1)


def test_each_happens_as_often_as_asked():
    u = torch.rand(20_000, NUM_DRAWS, generator=torch.Generator().manual_seed(0))
    _, labels = GeometricAugment(0.12)(torch.zeros(20_000, 1, 4, 4), u)
    often = (labels != 0).float().mean(0)
    assert often[0] == pytest.approx(0.5, abs=0.01) and often[1] == pytest.approx(0.06, abs=0.01)
    assert often[[2, 4, 5, 7, 8]].tolist() == pytest.approx([0.12] * 5, abs=0.01)
    assert labels[:, 2][labels[:, 2] != 0].std() == pytest.approx(1, abs=0.05)
    assert labels[:, 4].abs().max() <= 1 and math.isclose(float(labels[:, 3].min()), -2, abs_tol=1e-3)


def test_an_image_does_not_depend_on_its_batch():
    u = torch.rand(8, NUM_DRAWS, generator=torch.Generator().manual_seed(1))
    x = torch.rand(8, 3, 8, 12, generator=torch.Generator().manual_seed(2))
    whole, labels = GeometricAugment(0.9)(x, u)
    part, some = GeometricAugment(0.9)(x[5:], u[5:])
    assert torch.equal(whole[5:], part) and torch.equal(labels[5:], some)
