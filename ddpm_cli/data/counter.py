"""Random numbers as a function of position, many at once: the vectorised companion of `ddpm_cli.seeding.mix`."""

import numpy as np


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
