"""Noise that a thread draws a step ahead, as for a GPU, is the noise that is drawn when it is asked for."""

import pytest
import torch

from ddpm_cli.sampling.generate import ImageNoise
from ddpm_cli.system.ahead import Ahead

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "asked", [range(-1, 5), [-1, 0, 1, 2, 3, 4, 6, 7], [4, 3, 3, 0]], ids=["steps", "repaint", "any"]
)
def test_noise_drawn_ahead_has_the_same_bits(asked):
    now, ahead = (ImageNoise(3, [0, 5, 9], (2, 4, 4), CPU) for _ in range(2))
    ahead._ahead = Ahead(ahead._of_step, lambda i: i + 1)
    for i in asked:
        assert torch.equal(ahead(i), now(i))
    assert not torch.equal(now(0), now(1))


def test_a_sampler_that_draws_nothing_on_the_way_has_nothing_drawn_for_it():
    noise = ImageNoise(3, [0], (1, 4, 4), CPU)
    noise._ahead = Ahead(noise._of_step, lambda i: i + 1)
    noise(-1)
    assert noise._ahead._coming == {}
