"""The distribution of t in training: (u, schedule) -> (t, importance).

u: (B,) uniform in [0, 1), one number an image of the global batch. t: (B,), integer in 1..T for a table. importance:
(B,), the factor that keeps the loss an estimate of its mean over all t where t is not uniform. One that learns is an
nn.Module with observe(t, loss).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddpm_cli.diffusion.schedule import NoiseSchedule


def _to_timestep(u: Tensor, num_timesteps: int) -> Tensor:
    return (u.double() * num_timesteps).long().clamp(max=num_timesteps - 1) + 1


def _spread(u: Tensor) -> Tensor:
    """Uniform numbers that cover [0, 1) evenly, all from the first one."""
    return (u[0].double() + torch.arange(len(u), dtype=torch.float64, device=u.device) / len(u)) % 1


@dataclass(frozen=True)
class Uniform:
    """Every t alike, each image on its own (Ho et al. 2020)."""

    covers_all = True  # every t in 1..T is drawn, and the importance makes up for how often

    def __call__(self, u: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        return _to_timestep(u, schedule.num_timesteps), torch.ones_like(u)


@dataclass(frozen=True)
class Stratified:
    """One uniform draw, the rest of the batch spread evenly from it: less variance, same mean (Kingma et al. 2021,
    appendix I)."""

    covers_all = True

    def __call__(self, u: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        return _to_timestep(_spread(u), schedule.num_timesteps), torch.ones_like(u)


@dataclass(frozen=True)
class LogNormal:
    """ln(sigma / alpha) ~ N(mean, std²) (Karras et al. 2022, Table 1): training dwells where there is most to learn.

    t is real for EDM's schedule, the nearest row of a table. The density is part of the loss, so importance is 1.
    """

    mean: float = -1.2
    std: float = 1.2

    covers_all = False

    def __call__(self, u: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        normal = torch.special.ndtri(u.double().clamp(2**-26, 1 - 2**-26))
        t = schedule.time_of(-2 * (self.mean + self.std * normal))
        return (t if schedule.continuous else t.round().long()), torch.ones_like(u)


class LossSecondMoment(nn.Module):
    """p(t) proportional to the root of the mean of the last squared losses at t (Nichol and Dhariwal 2021, Eq. 18).

    Uniform until every t has been seen `history` times; a share of uniform_share stays uniform. The batch is spread
    evenly over p. The state is a function of the global batches alone: on several ranks each must observe() the
    losses of all.
    """

    covers_all = True
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
