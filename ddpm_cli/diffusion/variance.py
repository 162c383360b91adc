"""sigma_theta(x_t, t): the variance of the reverse step from t to s.

Each is called as (raw, level_t, level_s, floor) -> log-variance, of shape (B, C, H, W) where it comes from the network
(raw is the network's variance output), else of t's shape. floor is the posterior variance of the grid's second step: it
stands in for the posterior's variance at s = 0, which is zero and has no logarithm (Ho et al. 2020's code).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.diffusion.gaussian import NoiseLevel, expand, posterior_coefficients, transition


def _clean_before(level_s: NoiseLevel) -> Tensor:
    """Whether s = 0, the clean image."""
    return level_s.sigma == 0


@dataclass(frozen=True)
class FixedSmall:
    """The posterior's variance, beta tilde: right if the data were a single point."""

    learned = False

    def __call__(self, raw: Tensor | None, level_t: NoiseLevel, level_s: NoiseLevel, floor: Tensor) -> Tensor:
        variance = posterior_coefficients(level_t, level_s)[2]
        return torch.where(_clean_before(level_s), floor, variance).log()


@dataclass(frozen=True)
class FixedLarge:
    """The forward step's variance, beta: right if the data were standard normal. At s = 0 it too takes the floor,
    for a better likelihood of the decoder (Ho et al. 2020's code)."""

    learned = False

    def __call__(self, raw: Tensor | None, level_t: NoiseLevel, level_s: NoiseLevel, floor: Tensor) -> Tensor:
        return torch.where(_clean_before(level_s), floor, transition(level_t, level_s)[1]).log()


@dataclass(frozen=True)
class LearnedRange:
    """Between beta tilde and beta, geometrically, by the network (Nichol and Dhariwal 2021, Eq. 15); raw in [-1, 1]
    spans the range."""

    learned = True

    def __call__(self, raw: Tensor | None, level_t: NoiseLevel, level_s: NoiseLevel, floor: Tensor) -> Tensor:
        assert raw is not None, "the network has no variance output"
        low = expand(FixedSmall()(None, level_t, level_s, floor), raw)
        high = expand(transition(level_t, level_s)[1].log(), raw)
        share = (raw + 1) / 2
        return share * high + (1 - share) * low
