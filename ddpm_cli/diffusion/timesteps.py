"""The distribution of t in training: (u, schedule) -> (t, importance).

u: (B,) uniform in [0, 1), one number an image of the global batch. t: (B,), integer in 1..T, real where a law of the
noise level draws it. importance: (B,), the factor that keeps the loss an estimate of its mean over all t where t is not
uniform.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ddpm_cli.diffusion.schedule import NoiseSchedule


class Timesteps(Protocol):
    """What every distribution offers; one that derives from it states what differs from these defaults."""

    covers_all: bool = True  # every t in 1..T is drawn, and the importance makes up for how often

    @property
    def learned(self) -> bool:
        """Whether it has a state that checkpoints keep: as torch has it, whether it is a module."""
        return isinstance(self, nn.Module)

    def __call__(self, u: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]: ...

    def observe(self, t: Tensor, loss: Tensor) -> None:
        """Told after each step the t, (B,), and losses, (B,), of the global batch: what a distribution learns from."""


def _to_timestep(u: Tensor, num_timesteps: int) -> Tensor:
    return (u.double() * num_timesteps).long().clamp(max=num_timesteps - 1) + 1


def _spread(u: Tensor) -> Tensor:
    """Uniform numbers that cover [0, 1) evenly, all from the first one."""
    return (u[0].double() + torch.arange(len(u), dtype=torch.float64, device=u.device) / len(u)) % 1


@dataclass(frozen=True)
class Uniform(Timesteps):
    """Every t alike, each image on its own (Ho et al. 2020)."""

    def __call__(self, u: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        return _to_timestep(u, schedule.num_timesteps), torch.ones_like(u)


@dataclass(frozen=True)
class Stratified(Timesteps):
    """One uniform draw, the batch spread evenly from it: less variance, same mean (Kingma et al. 2021, appendix I)."""

    def __call__(self, u: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        return _to_timestep(_spread(u), schedule.num_timesteps), torch.ones_like(u)


class LevelLaw(Timesteps):
    """A law of the noise level, on any schedule: t is real, and the density is part of the loss (importance 1). Levels
    beyond the schedule's ends are its ends."""

    covers_all = False

    def log_snr(self, u: Tensor) -> Tensor:
        """The quantile at u, float64 in (0, 1)."""
        raise NotImplementedError

    def __call__(self, u: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        return schedule.time_of(self.log_snr(u.double().clamp(2**-26, 1 - 2**-26))), torch.ones_like(u)


@dataclass(frozen=True)
class LogNormal(LevelLaw):
    """ln(sigma / alpha) ~ N(mean, std²) (Karras et al. 2022, Table 1): training dwells where there is most to learn.

    The mean is as for data of standard deviation 0.5; sigma_data is what they have.
    """

    mean: float = -1.2
    std: float = 1.2
    sigma_data: float = 0.5

    def log_snr(self, u: Tensor) -> Tensor:
        return -2 * (self.mean + math.log(self.sigma_data / 0.5) + self.std * torch.special.ndtri(u))


@dataclass(frozen=True)
class LogitNormal(LevelLaw):
    """The share of noise, sigma / (alpha + sigma), is logit-normal (Esser et al. 2024, Section 3.1): on the straight
    path of schedule=rectified_flow that is its time. mean above 0: noisier."""

    mean: float = 0.0
    std: float = 1.0

    def log_snr(self, u: Tensor) -> Tensor:
        return -2 * (self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True)
class Laplace(LevelLaw):
    """The log-SNR is Laplace-distributed (Hang et al. 2024): most draws lie where image and noise balance."""

    mean: float = 0.0
    scale: float = 0.5

    def log_snr(self, u: Tensor) -> Tensor:
        return self.mean + self.scale * (u - 0.5).sign() * torch.log1p(-2 * (u - 0.5).abs()).neg()


@dataclass(frozen=True)
class Cosine(LevelLaw):
    """The log-SNR is as that of uniform times on the cosine schedule, moved by `shift`: a hyperbolic secant's law
    (Kingma and Gao 2023, Table 1)."""

    shift: float = 0.0

    def log_snr(self, u: Tensor) -> Tensor:
        return -2 * torch.tan(u * (math.pi / 2)).log() + self.shift


class LossSecondMoment(nn.Module, Timesteps):
    """p(t) proportional to the root of the mean of the last squared losses at t (Nichol and Dhariwal 2021, Eq. 18).

    Uniform until every t has been seen `history` times; a share of uniform_share stays uniform. The batch is spread
    evenly over p. The state is a function of the global batches alone: on several ranks each must observe() the
    losses of all.
    """

    losses: Tensor
    counts: Tensor

    def __init__(self, num_timesteps: int, history: int = 10, uniform_share: float = 0.001):
        super().__init__()
        self.history, self.uniform_share = history, uniform_share
        # Row t; row 0 takes what is not kept. Counting modulo `history` gives the place of the next loss.
        self.register_buffer("losses", torch.zeros(num_timesteps + 1, history))
        self.register_buffer("counts", torch.zeros(num_timesteps + 1, dtype=torch.int64))

    def __call__(self, u: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        share = self.probabilities()
        t = torch.searchsorted(share.cumsum(0), _spread(u).to(share), right=True).clamp(max=len(share) - 1)
        return t + 1, (1 / (len(share) * share[t])).to(u.dtype)

    def probabilities(self) -> Tensor:
        """p(t) for t = 1..T: (T,) float64."""
        size = self.losses[1:].double().square().mean(1).sqrt()
        uniform = torch.full_like(size, 1 / len(size))
        known = (self.counts[1:] >= self.history).all() & (size.sum() > 0)
        share = size / size.sum().clamp(min=1e-300)
        return torch.where(known, torch.lerp(share, uniform, self.uniform_share), uniform)

    @torch.no_grad()
    def observe(self, t: Tensor, loss: Tensor) -> None:
        """Remembers the losses, (B,), of the global batch at t, (B,) in 1..T, as if one after another."""
        t, order = t.sort(stable=True)
        first, end = torch.searchsorted(t, t), torch.searchsorted(t, t, right=True)
        place = torch.arange(len(t), device=t.device)
        row = torch.where(end - place <= self.history, t, 0)  # only the last ones of a batch with many of one t
        slot = (self.counts[t] + place - first) % self.history
        kept = torch.where(row > 0, loss[order].to(self.losses.dtype), 0.0)
        self.losses[row, torch.where(row > 0, slot, 0)] = kept
        self.counts.scatter_add_(0, t, torch.ones_like(t))
