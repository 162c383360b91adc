"""The variational bound: term by term, and an estimate of it from few terms. denoise(x_t, t) has its conditioning
bound."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import BoundDenoise
from ddpm_cli.diffusion.gaussian import diffuse
from ddpm_cli.diffusion.losses import bound_term, prior_term
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.variance import Variance


@dataclass(frozen=True)
class Bound:
    """The bound of each image and its parts, all in bits per dimension."""

    total: Tensor  # (B,)
    prior: Tensor  # (B,), L_T
    terms: Tensor  # (B, T), of t = 1..T


def variational_bound(
    denoise: BoundDenoise, x_0: Tensor, schedule: NoiseSchedule, variance: Variance, noise: Callable[[int], Tensor]
) -> Bound:
    """The full bound L_T + sum of L_{t-1} + L_0 (DDPM Eq. 5), one draw of noise(t) a term: T passes of the network."""

    def terms() -> Iterator[Tensor]:
        for step in range(1, schedule.num_timesteps + 1):
            t = torch.full((len(x_0),), step, device=x_0.device)
            x_t = diffuse(x_0, noise(step), schedule.level(t))
            yield bound_term(denoise(x_t, t), x_0, x_t, t, schedule, variance)

    each, prior = torch.stack(list(terms()), dim=1), prior_term(x_0, schedule)
    return Bound(prior + each.sum(1), prior, each)


@dataclass(frozen=True)
class BoundEstimate:
    """An unbiased estimate of each image's bound and its parts, in bits per dimension, from several draws."""

    prior: Tensor  # (B,), L_T
    terms: Tensor  # (B, replicates, strata), of each range of t; the first is the decoder, L_0
    strata: list[range]

    @property
    def total(self) -> Tensor:
        """(B,)"""
        return self.prior + self.terms.sum(2).mean(1)

    @property
    def variance(self) -> Tensor:
        """(B,), of `total` as an estimate of the full sum."""
        return self.terms.sum(2).var(1) / self.terms.shape[1]

    @property
    def mean(self) -> float:
        """The mean bound of these images."""
        return float(self.total.mean())

    @property
    def standard_error(self) -> float:
        """Of `mean`, as an estimate of what the full sum over t would give for the same images."""
        return float(self.variance.sum().sqrt()) / len(self.prior)


def strata(num_timesteps: int, count: int) -> list[range]:
    """1..T cut into at most `count` ranges, of about equal length in log t: the bound's terms fall like 1 / t, so each
    range holds about as much of it. The first ranges are single times."""
    edges = [1]
    for left in range(min(count, num_timesteps), 0, -1):
        ratio = (num_timesteps + 1) / edges[-1]
        edges.append(max(edges[-1] + 1, round(edges[-1] * ratio ** (1 / left))))
    edges = [edge for edge in edges if edge < num_timesteps + 1] + [num_timesteps + 1]
    return [range(low, high) for low, high in itertools.pairwise(edges)]


Draw = Callable[[int], tuple[Tensor, Tensor]]  # pass -> (u (B,) in [0, 1), standard normal noise of x_0's shape)


def drawn_from(generator: torch.Generator, x_0: Tensor) -> Draw:
    """Draws for all images of x_0 from one stream, on its device."""

    def draw(number: int) -> tuple[Tensor, Tensor]:
        u = torch.rand(len(x_0), generator=generator, dtype=torch.float64, device=generator.device)
        return u, torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype, device=generator.device)

    return draw


def estimated_bound(
    denoise: BoundDenoise,
    x_0: Tensor,
    schedule: NoiseSchedule,
    variance: Variance,
    *,
    draw: Draw,
    num_strata: int = 32,
    replicates: int = 2,
) -> BoundEstimate:
    """The bound from num_strata x replicates passes instead of T: in each stratum one t an image, drawn uniformly,
    stands for all. replicates: independent estimates, at least 2, whose spread gives the variance."""
    if replicates < 2:
        raise ValueError(f"replicates must be at least 2 to give a standard error, got {replicates}")
    ranges, terms = strata(schedule.num_timesteps, num_strata), []
    for number, stratum in enumerate(ranges * replicates):
        u, noise = draw(number)
        t = stratum.start + (u * len(stratum)).long().clamp(max=len(stratum) - 1)
        x_t = diffuse(x_0, noise, schedule.level(t))
        terms.append(len(stratum) * bound_term(denoise(x_t, t), x_0, x_t, t, schedule, variance))
    shaped = torch.stack(terms, 1).reshape(len(x_0), replicates, len(ranges))
    return BoundEstimate(prior_term(x_0, schedule), shaped, ranges)
