"""Loss weightings over the noise level, all stated for the squared error of x_0 (so they suit any prediction).

Each is called as (level) -> weight of t's shape. |noise error|² = SNR |x_0 error|² and |v error|² = (SNR + 1) |x_0
error|².
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.diffusion.gaussian import NoiseLevel


@dataclass(frozen=True)
class Epsilon:
    """The plain error of the noise: L_simple (DDPM Eq. 14)."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return level.snr


@dataclass(frozen=True)
class X0:
    """The plain error of the clean image: reconstruction."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return torch.ones_like(level.alpha)


@dataclass(frozen=True)
class V:
    """The plain error of v, where alpha² + sigma² = 1 (Salimans and Ho 2022, 'SNR + 1')."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return level.snr + 1


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) (Hang et al. 2023, Section 3.4)."""

    gamma: float = 5.0

    def __call__(self, level: NoiseLevel) -> Tensor:
        return level.snr.clamp(max=self.gamma)
