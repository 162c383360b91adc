"""Samplers of the probability-flow ODE dx/dsigma = (x - x_0) / sigma, in x/alpha over sigma/alpha (Karras et al. 2022).

r is the step's ratio of sigma/alpha, end over start. Each step is written out as weights of the state and the
estimates, so that nothing is divided by a small sigma while sampling. Out of noise, a step too long for a correction
is Euler's: see _corrected.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.diffusion.gaussian import NoiseLevel
from ddpm_cli.diffusion.samplers.base import (
    BoundDenoise,
    Grid,
    SamplerStep,
    StepNoise,
    combined,
    grid_in_sigma,
    grid_of,
)
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.spacing import Spacing

# From sigma/alpha above 1 two estimates of data in [-1, 1] may differ by about 1. Where a correction puts more of that
# difference than this many standard deviations of the step's noise into the image, it no longer passes for noise.
_MOST_CORRECTION = 3.0


@dataclass(frozen=True)
class Euler:
    """Euler's method (Karras et al. 2022, Algorithm 1 without its correction): the same map as DDIM's, eta = 0."""

    num_steps: int | None = 50
    spacing: Spacing = "karras"

    deterministic = True

    def __call__(
        self, denoise: BoundDenoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise: StepNoise
    ) -> Iterator[SamplerStep]:
        grid = grid_of(schedule, self.num_steps, self.spacing)
        keep, gain = grid.first_order
        return _euler(denoise, x_T, grid, keep.tolist(), gain.tolist())


def _euler(denoise: BoundDenoise, x: Tensor, grid: Grid, keep: list[float], gain: list[float]) -> Iterator[SamplerStep]:
    for i, (t, s) in enumerate(zip(grid.times, grid.ends, strict=False)):
        x_0 = denoise(x, t).x_0
        x = combined(x, keep[i], (gain[i], x_0))
        yield SamplerStep(i, s, x, x_0)


def _corrected(grid: Grid, weight: Tensor) -> list[bool]:
    """Which steps a second evaluation corrects, weight being that of the two estimates' difference, over alpha.

    Left out are the step into the clean image and steps far too long out of noise, as trailing's first of the cosine
    schedule, from 20,000 to 5: the correction would outweigh all noise, where Euler's step is nearly exact.
    """
    start, end = (level.sigma / level.alpha for level in (grid.start, grid.end))
    too_long = (start > 1) & (weight > _MOST_CORRECTION * end)
    return ((end > 0) & ~too_long).tolist()


def _heun_weights(grid: Grid) -> tuple[list[float], list[float]]:
    """Weights of the estimates at a step's start and end in the trapezoidal rule; not used into the clean image."""
    r = grid.ratio
    return (grid.end.alpha * (3 - 2 * r - 1 / r) / 2).tolist(), (grid.end.alpha * (1 / r - 1) / 2).tolist()


@dataclass(frozen=True)
class Heun:
    """Heun's second-order method (Karras et al. 2022, Algorithm 1): 2 num_steps - 1 evaluations, the last step being
    Euler's."""

    num_steps: int | None = 18
    spacing: Spacing = "karras"

    deterministic = True

    def __call__(
        self, denoise: BoundDenoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise: StepNoise
    ) -> Iterator[SamplerStep]:
        grid = grid_in_sigma(schedule, self.num_steps, self.spacing, "heun")
        return _heun(denoise, x_T, grid, None, noise)


@dataclass(frozen=True)
class ChurnedHeun:
    """EDM's stochastic sampler (Karras et al. 2022, Algorithm 2): Heun's steps, each from a little more noise.

    Where sigma/alpha lies in [s_min, s_max] it is raised by min(s_churn / num_steps, sqrt(2) - 1) of itself (but not
    above that of T, where a schedule ends) with new noise of standard deviation s_noise.
    """

    num_steps: int | None = 256
    spacing: Spacing = "karras"
    s_churn: float = 40.0
    s_min: float = 0.05
    s_max: float = 50.0
    s_noise: float = 1.003

    @property
    def deterministic(self) -> bool:
        return self.s_churn == 0

    def __call__(
        self, denoise: BoundDenoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise: StepNoise
    ) -> Iterator[SamplerStep]:
        grid = grid_in_sigma(schedule, self.num_steps, self.spacing, "edm")
        sigma = grid.start.sigma / grid.start.alpha
        gamma = min(self.s_churn / len(sigma), math.sqrt(2) - 1)
        raised = torch.where((sigma >= self.s_min) & (sigma <= self.s_max), 1 + gamma, 1.0)
        times = torch.where(
            raised > 1, schedule.time_of(grid.start.log_snr - 2 * raised.log()), torch.stack(grid.times[:-1])
        )
        level = schedule.level(times)
        added = ((level.sigma / level.alpha) ** 2 - sigma**2).clamp(min=0).sqrt() * self.s_noise
        churn = ((level.alpha / grid.start.alpha).tolist(), (level.alpha * added).tolist())
        raised_grid = Grid((*times.unbind(), grid.times[-1]), level, grid.end)
        return _heun(denoise, x_T, raised_grid, churn, noise, ends=grid.times[1:])


def _heun(denoise, x, grid: Grid, churn, noise, ends: tuple[Tensor, ...] | None = None) -> Iterator[SamplerStep]:
    keep, gain = (weights.tolist() for weights in grid.first_order)
    at_start, at_end = _heun_weights(grid)
    corrected = _corrected(grid, (1 / grid.ratio - 1) / 2)
    for i, (t, s) in enumerate(zip(grid.times, ends or grid.times[1:], strict=False)):
        if churn is not None and churn[1][i] > 0:
            x = combined(x, churn[0][i], (churn[1][i], noise(i)))
        x_0 = denoise(x, t).x_0
        ahead = combined(x, keep[i], (gain[i], x_0))
        if corrected[i]:
            ahead = combined(x, keep[i], (at_start[i], x_0), (at_end[i], denoise(ahead, s).x_0))
        x = ahead
        yield SamplerStep(i, float(s), x, x_0)


@dataclass(frozen=True)
class DPM2:
    """The midpoint method, its midpoint in log sigma (Karras et al. 2022's DPM-Solver-2, as k-diffusion's dpm_2):
    2 num_steps - 1 evaluations."""

    num_steps: int | None = 18
    spacing: Spacing = "karras"

    deterministic = True

    def __call__(
        self, denoise: BoundDenoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise: StepNoise
    ) -> Iterator[SamplerStep]:
        grid = grid_in_sigma(schedule, self.num_steps, self.spacing, "dpm2")
        middle = torch.where(grid.end.sigma > 0, (grid.start.log_snr + grid.end.log_snr) / 2, grid.start.log_snr)
        return _dpm_2(denoise, x_T, grid, schedule.time_of(middle), schedule)


def _dpm_2(denoise, x: Tensor, grid: Grid, middle: Tensor, schedule: NoiseSchedule) -> Iterator[SamplerStep]:
    level = schedule.level(middle)
    to_middle = Grid((), grid.start, NoiseLevel(level.alpha, level.sigma)).first_order
    keep_m, gain_m = (weights.tolist() for weights in to_middle)
    keep, gain = (weights.tolist() for weights in grid.first_order)
    root = grid.ratio.sqrt()
    slope = grid.end.alpha * (root - 1 / root)  # (sigma' - sigma) / sigma_middle
    at_start, at_middle = (slope * (1 - root)).tolist(), (-slope).tolist()
    corrected = _corrected(grid, 1 / root - root)
    for i, (t, t_m, s) in enumerate(zip(grid.times, middle.unbind(), grid.ends, strict=False)):
        x_0 = denoise(x, t).x_0
        if corrected[i]:
            x_m = combined(x, keep_m[i], (gain_m[i], x_0))
            x = combined(x, keep[i], (at_start[i], x_0), (at_middle[i], denoise(x_m, t_m).x_0))
        else:
            x = combined(x, keep[i], (gain[i], x_0))
        yield SamplerStep(i, s, x, x_0)
