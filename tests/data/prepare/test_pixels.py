"""Arrays of images brought to another size and other channels."""

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_cli.data.prepare.pixels import fit


def photographs(channels=3, size=32):
    """Smooth random images: (4, channels, size, size) uint8."""
    coarse = torch.rand(4, channels, 5, 5, generator=torch.Generator().manual_seed(0)) * 255
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear").to(torch.uint8)


@pytest.mark.parametrize("size", [16, 24, 48])
def test_resizing_is_pillows_antialiased_bicubic(size):
    images = photographs()
    with_pillow = [
        np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BICUBIC))
        for image in images
    ]
    expected = torch.from_numpy(np.stack(with_pillow)).permute(0, 3, 1, 2)
    assert (fit(images, 3, size).int() - expected.int()).abs().max() <= 1


def test_colour_becomes_pillows_grey():
    images = photographs()
    expected = [np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")) for image in images]
    assert torch.equal(fit(images, 1, 32)[:, 0], torch.from_numpy(np.stack(expected)))


def test_grey_becomes_colour_by_repetition():
    images = photographs(1)
    assert torch.equal(fit(images, 3, 32), images.repeat(1, 3, 1, 1))


def test_images_that_fit_are_not_touched():
    images = photographs()
    assert torch.equal(fit(images, 3, 32), images)
