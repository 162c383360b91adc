"""Loss weightings over the noise level, all stated for the squared error of x_0 (so they suit any prediction).

Called as (level) -> weight of t's shape. |noise error|² = SNR |x_0 error|², |v error|² = (SNR + 1) |x_0 error|².
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ddpm_cli.diffusion.gaussian import NoiseLevel


class Weighting(Protocol):
    """What every weighting offers; one that derives from it states what differs from these defaults."""

    @property
    def learned(self) -> bool:
        """Whether it has parameters, to be trained with the network's: as torch has it, whether it is a module."""
        return isinstance(self, nn.Module)

    def __call__(self, level: NoiseLevel) -> Tensor: ...

    def balance(self, error: Tensor, level: NoiseLevel) -> Tensor:
        """What is trained on, (B,), for the weighted errors, (B,), of images at these levels."""
        return error


@dataclass(frozen=True)
class Epsilon(Weighting):
    """The plain error of the noise: L_simple (DDPM Eq. 14)."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return level.snr


@dataclass(frozen=True)
class X0(Weighting):
    """The plain error of the clean image: reconstruction."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return torch.ones_like(level.alpha)


@dataclass(frozen=True)
class V(Weighting):
    """The plain error of v, where alpha² + sigma² = 1 (Salimans and Ho 2022, 'SNR + 1')."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return level.snr + 1


@dataclass(frozen=True)
class Flow(Weighting):
    """The plain error of the velocity noise - x_0 of a straight path: (1 + alpha / sigma)² (Esser et al. 2024)."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        return (1 + level.snr.sqrt()) ** 2


@dataclass(frozen=True)
class MinSNR(Weighting):
    """min(SNR, gamma) (Hang et al. 2023, Section 3.4)."""

    gamma: float = 5.0

    def __call__(self, level: NoiseLevel) -> Tensor:
        return level.snr.clamp(max=self.gamma)


@dataclass(frozen=True)
class SoftMinSNR(Weighting):
    """SNR gamma / (SNR + gamma): min-SNR without its corner (k-diffusion, with gamma = 1 / sigma_data²)."""

    gamma: float = 4.0

    def __call__(self, level: NoiseLevel) -> Tensor:
        return level.snr * self.gamma / (level.snr + self.gamma)


@dataclass(frozen=True)
class P2(Weighting):
    """SNR / (k + SNR)^gamma: less on the last touches, where an image is almost clean (Choi et al. 2022)."""

    k: float = 1.0
    gamma: float = 1.0

    def __call__(self, level: NoiseLevel) -> Tensor:
        return level.snr / (self.k + level.snr) ** self.gamma


@dataclass(frozen=True)
class EDM(Weighting):
    """SNR + 1 / sigma_data²: the plain error of what EDM's network predicts (Karras et al. 2022, Table 1: lambda =
    (sigma² + sigma_data²) / (sigma sigma_data)²)."""

    sigma_data: float = 0.5

    def __call__(self, level: NoiseLevel) -> Tensor:
        return level.snr + 1 / self.sigma_data**2


class Uncertainty(nn.Module, Weighting):
    """EDM's weighting, balanced over the noise levels by what training finds there: error / e^u + u, with u learned
    (Karras et al. 2024, after Kendall et al. 2018).

    At its best u is the log of the mean error, so that all levels weigh alike whatever the weighting underneath; u
    starts at 0, is a linear function of random Fourier features of ln(sigma / alpha) / 4, and is of no use after
    training.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, sigma_data: float = 0.5, channels: int = 128):
        super().__init__()
        self.base = EDM(sigma_data)
        draw = torch.Generator().manual_seed(0)
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(channels, generator=draw))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels, generator=draw))
        self.weight = nn.Parameter(torch.zeros(channels))

    def __call__(self, level: NoiseLevel) -> Tensor:
        return self.base(level)

    def balance(self, error: Tensor, level: NoiseLevel) -> Tensor:
        u = self.log_error(level).to(error.dtype)
        return error * torch.exp(-u) + u

    def log_error(self, level: NoiseLevel) -> Tensor:
        """u, of t's shape, float32; at zero SNR that of log-SNR -40."""
        time = -level.log_snr.clamp(-40.0, 40.0).float() / 8
        features = math.sqrt(2) * torch.cos(time[..., None] * self.frequencies + self.phases)
        return features @ self.weight / math.sqrt(self.weight.numel())
