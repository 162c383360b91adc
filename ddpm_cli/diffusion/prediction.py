"""What the network predicts, as the coefficients that turn its output into an estimate of x_0.

Each is called as (level_t, level_before) -> (c_skip, c_out, c_in), all of t's shape, and the estimate of x_0 is
c_skip x_t + c_out F(c_in x_t, time), F being the network. level_before is the level at t - 1. c_in is 1 where
alpha² + sigma² = 1, and else brings x_t to that scale (as the VP preconditioning of Karras et al. 2022, Table 1, does).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.diffusion.gaussian import NoiseLevel, posterior_coefficients

Coefficients = tuple[Tensor, Tensor, Tensor]


def _unit_input(level: NoiseLevel) -> Tensor:
    return (level.alpha**2 + level.sigma**2).rsqrt()


@dataclass(frozen=True)
class Epsilon:
    """The noise (DDPM Eq. 11)."""

    needs_signal = True  # at zero SNR the noise says nothing of x_0
    needs_table = False

    def __call__(self, level: NoiseLevel, before: NoiseLevel) -> Coefficients:
        return 1 / level.alpha, -level.sigma / level.alpha, _unit_input(level)


@dataclass(frozen=True)
class X0:
    """The clean image itself."""

    needs_signal = False
    needs_table = False

    def __call__(self, level: NoiseLevel, before: NoiseLevel) -> Coefficients:
        return torch.zeros_like(level.alpha), torch.ones_like(level.alpha), _unit_input(level)


@dataclass(frozen=True)
class V:
    """v = alpha noise - sigma x_0 (Salimans and Ho 2022, appendix D), of alpha and sigma scaled to alpha² + sigma² =
    1."""

    needs_signal = False
    needs_table = False

    def __call__(self, level: NoiseLevel, before: NoiseLevel) -> Coefficients:
        unit = _unit_input(level)
        return level.alpha * unit**2, -level.sigma * unit, unit


@dataclass(frozen=True)
class Mean:
    """The posterior's mean mu of the step from t to t - 1 (DDPM Section 3.2 and Table 2), solved for x_0."""

    needs_signal = False
    needs_table = True  # between a formula's real times there is no step to be the mean of

    def __call__(self, level: NoiseLevel, before: NoiseLevel) -> Coefficients:
        c_0, c_t, _ = posterior_coefficients(level, before)
        return -c_t / c_0, 1 / c_0, _unit_input(level)


@dataclass(frozen=True)
class EDM:
    """EDM's preconditioning: input and target of unit variance, whatever the level (Karras et al. 2022, Table 1 and
    Eq. 7).

    sigma_data is the data's standard deviation. Stated for alpha = 1 in the paper; here for any level, by its sigma /
    alpha.
    """

    sigma_data: float = 0.5

    needs_signal = True
    needs_table = False

    def __call__(self, level: NoiseLevel, before: NoiseLevel) -> Coefficients:
        sigma, power = level.sigma / level.alpha, (level.sigma / level.alpha) ** 2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / power
        return c_skip / level.alpha, sigma * self.sigma_data / power.sqrt(), 1 / (power.sqrt() * level.alpha)
