"""Randomness as a function of position: every draw is seeded by (seed, where it is used), so nothing random is
saved."""

import torch

_MASK = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """A 63-bit seed that is a defined function of the integers given, in order.

    Each number passes through the finaliser of SplitMix64 (Steele, Lea and Flood 2014), so that neighbouring seeds,
    steps and image indices give unrelated streams. Python's hash() of a tuple is not defined across versions.
    """
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state ^ (number & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


def generator(device: torch.device | str, *numbers: int) -> torch.Generator:
    """A fresh generator on `device` whose stream is a function of the integers given."""
    return torch.Generator(device=device).manual_seed(mix(*numbers))
