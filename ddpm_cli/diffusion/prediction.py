"""What the network predicts, as the coefficients that turn its output into an estimate of x_0.

Each is called as (level_t, level_before) -> (c_skip, c_out, c_in), all of t's shape, and the estimate of x_0 is
c_skip x_t + c_out F(c_in x_t, time), F being the network. level_before is the level at t - 1. c_in is 1 where
alpha² + sigma² = 1, and else brings x_t to that scale (as the VP preconditioning of Karras et al. 2022, Table 1, does);
Flow and EDM state their own.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ddpm_cli.diffusion.gaussian import NoiseLevel, posterior_coefficients

Coefficients = tuple[Tensor, Tensor, Tensor]


def _unit_input(level: NoiseLevel) -> Tensor:
    return (level.alpha**2 + level.sigma**2).rsqrt()


class Prediction(Protocol):
    """What every prediction offers; one that derives from it states what differs from these defaults."""

    needs_signal: bool = True  # at zero SNR its output says nothing of x_0: not for zero terminal SNR
    needs_table: bool = False  # between a formula's real times it has no meaning: not for a continuous schedule

    def __call__(self, level: NoiseLevel, before: NoiseLevel) -> Coefficients: ...


@dataclass(frozen=True)
class Epsilon(Prediction):
    """The noise (DDPM Eq. 11)."""

    def __call__(self, level: NoiseLevel, before: NoiseLevel) -> Coefficients:
        return 1 / level.alpha, -level.sigma / level.alpha, _unit_input(level)


@dataclass(frozen=True)
class X0(Prediction):
    """The clean image itself."""

    needs_signal = False

    def __call__(self, level: NoiseLevel, before: NoiseLevel) -> Coefficients:
        return torch.zeros_like(level.alpha), torch.ones_like(level.alpha), _unit_input(level)


@dataclass(frozen=True)
class V(Prediction):
    """v = alpha noise - sigma x_0, with alpha and sigma scaled to alpha² + sigma² = 1 (Salimans and Ho 2022, D)."""

    needs_signal = False

    def __call__(self, level: NoiseLevel, before: NoiseLevel) -> Coefficients:
        unit = _unit_input(level)
        return level.alpha * unit**2, -level.sigma * unit, unit


@dataclass(frozen=True)
class Flow(Prediction):
    """The velocity noise - x_0 of the straight path from image to noise (Liu et al. 2022; Lipman et al. 2022), which
    x_t / (alpha + sigma) lies on whatever the schedule."""

    needs_signal = False

    def __call__(self, level: NoiseLevel, before: NoiseLevel) -> Coefficients:
        total = level.alpha + level.sigma
        return 1 / total, -level.sigma / total, 1 / total


@dataclass(frozen=True)
class Mean(Prediction):
    """The posterior's mean mu of the step from t to t - 1 (DDPM Section 3.2 and Table 2), solved for x_0."""

    needs_signal = False
    needs_table = True  # without a step from t to t - 1 there is nothing to be the mean of

    def __call__(self, level: NoiseLevel, before: NoiseLevel) -> Coefficients:
        c_0, c_t, _ = posterior_coefficients(level, before)
        return -c_t / c_0, 1 / c_0, _unit_input(level)


@dataclass(frozen=True)
class EDM(Prediction):
    """EDM's preconditioning: input and target of unit variance at any level (Karras et al. 2022, Table 1 and Eq. 7).

    sigma_data is the data's standard deviation. The paper has alpha = 1; here any level goes, by its sigma / alpha.
    """

    sigma_data: float = 0.5

    def __call__(self, level: NoiseLevel, before: NoiseLevel) -> Coefficients:
        sigma, power = level.sigma / level.alpha, (level.sigma / level.alpha) ** 2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / power
        return c_skip / level.alpha, sigma * self.sigma_data / power.sqrt(), 1 / (power.sqrt() * level.alpha)
