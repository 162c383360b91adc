"""Randomness as a function of position: every draw is seeded by (seed, where it is used), so nothing random is
saved.

Two ways to the same end. `mix` folds a few integers into a seed, and `generator` makes a torch stream of it: for
tensors drawn as a whole, such as the noise of an image or the order of an epoch. `bits` and `uniform` give one number
for each of many positions without drawing those before: for coins and drawings asked for in any slice. Their `stream`
comes from `mix`; both finish with SplitMix64's, and neither ever changes, since a resumed run must draw what it would
have drawn.
"""

import numpy as np
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


def bits(stream: int, positions: np.ndarray) -> np.ndarray:
    """64 random bits for each position: uint64, of the shape of `positions` (integers >= 0).

    The finaliser of SplitMix64 on a Weyl sequence that starts at `stream` (Steele, Lea and Flood 2014).
    """
    state = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(stream)
    state = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ state >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return state ^ state >> np.uint64(31)


def uniform(stream: int, positions: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1), float32, one for each position."""
    return (bits(stream, positions) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
