"""Random numbers as a function of position."""

import numpy as np

from ddpm_cli.seeding import bits, uniform


def test_a_number_depends_on_stream_and_position_alone():
    positions = np.arange(1000)
    assert np.array_equal(bits(7, positions)[500:], bits(7, positions[500:]))
    assert np.array_equal(bits(7, positions.reshape(10, 100)).ravel(), bits(7, positions))
    assert (bits(7, positions) != bits(8, positions)).all()


def test_every_bit_is_a_fair_coin():
    random = bits(3, np.arange(20_000))
    ones = [(random >> np.uint64(bit) & np.uint64(1)).mean() for bit in range(64)]
    assert all(abs(one - 0.5) < 0.02 for one in ones)  # 5.6 standard deviations


def test_uniform_numbers_are_uniform_and_below_one():
    random = uniform(3, np.arange(100_000))
    assert random.dtype == np.float32 and random.min() >= 0 and random.max() < 1
    assert np.abs(np.histogram(random, 10, (0, 1))[0] / 10_000 - 1).max() < 0.06


def test_neighbours_are_uncorrelated():
    random = uniform(3, np.arange(100_000))
    assert abs(np.corrcoef(random[:-1], random[1:])[0, 1]) < 0.015
