"""Samplers of the probability-flow ODE dx/dsigma = (x - x_0) / sigma, in x/alpha over sigma/alpha (Karras et al. 2022).

r is the step's ratio of sigma/alpha, end over start. Each step is written out as weights of the state and the
estimates, so that nothing is divided by a small sigma while sampling. Out of noise, a step too long for a correction
is Euler's: see _corrected.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddpm_cli.diffusion.gaussian import NoiseLevel
from ddpm_cli.diffusion.samplers.base import Grid, GridSampler, SamplerStep, combined
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.spacing import MOST_SIGMA, Spacing

# From sigma/alpha above 1 two estimates of data in [-1, 1] may differ by about 1. correct=auto leaves a correction out
# that puts more of that difference than this many standard deviations of the step's noise into the image, where it no
# longer passes for noise. Both limits were chosen by the error on exact mixtures (docs/samplers.md): Heun's second
# estimate is of the step's far end, the midpoint's of half way, where it is worth more.
_MOST_CORRECTION = {"heun": 3.0, "dpm2": 20.0}
CORRECT = ("auto", "always")


@dataclass(frozen=True)
class Euler(GridSampler):
    """Euler's method (Karras et al. 2022, Algorithm 1 without its correction): the same map as DDIM's, eta = 0."""

    num_steps: int | None = 50

    deterministic = True

    def __call__(self, denoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise) -> Iterator[SamplerStep]:
        grid = self.grid(schedule)
        keep, gain = grid.first_order
        return _euler(denoise, x_T, grid, keep.tolist(), gain.tolist())


def _euler(denoise, x: Tensor, grid: Grid, keep: list[float], gain: list[float]) -> Iterator[SamplerStep]:
    for i, (t, s) in enumerate(zip(grid.times, grid.ends, strict=False)):
        x_0 = denoise(x, t).x_0
        x = combined(x, keep[i], (gain[i], x_0))
        yield SamplerStep(i, s, x, x_0)


def _corrected(grid: Grid, weight: Tensor, solver: str, correct: str) -> list[bool]:
    """Which steps a second evaluation corrects, weight being that of the two estimates' difference, over alpha.

    `always`: all but the one into the clean image, as published. `auto` leaves out more: long steps out of noise (of
    18 none, of 4 to 10 one or two), and any from above MOST_SIGMA, where estimates differ by a network's errors alone.
    """
    if correct not in CORRECT:
        raise ValueError(f"sampler.correct must be one of {', '.join(CORRECT)}, got {correct}")
    start, end = (level.sigma / level.alpha for level in (grid.start, grid.end))
    too_long = (start > 1) & (weight > _MOST_CORRECTION[solver] * end) | (start > MOST_SIGMA * (1 + 1e-9))
    return ((end > 0) & ~(too_long & (correct == "auto"))).tolist()


def _heun_weights(grid: Grid) -> tuple[list[float], list[float]]:
    """Weights of the estimates at a step's start and end in the trapezoidal rule; not used into the clean image."""
    r = grid.ratio
    return (grid.end.alpha * (3 - 2 * r - 1 / r) / 2).tolist(), (grid.end.alpha * (1 / r - 1) / 2).tolist()


@dataclass(frozen=True)
class Heun(GridSampler):
    """Heun's second-order method (Karras et al. 2022, Algorithm 1): 2 num_steps - 1 evaluations, Euler's step last."""

    num_steps: int | None = 18
    correct: str = "auto"

    favours = "log_snr_by_steps"
    deterministic = True

    def __call__(self, denoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise) -> Iterator[SamplerStep]:
        grid = self.grid_in_sigma(schedule, "heun")
        return _heun(denoise, x_T, grid, None, noise, self.correct)


@dataclass(frozen=True)
class ChurnedHeun(GridSampler):
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
    correct: str = "auto"

    @property
    def deterministic(self) -> bool:
        return self.s_churn == 0

    def along(self, times: list[float], num_steps: int) -> "ChurnedHeun":
        churn = self.s_churn * (len(times) - 1) / num_steps  # is shared out over the steps of a walk
        return replace(self, num_steps=None, spacing=times, s_churn=churn)

    def __call__(self, denoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise) -> Iterator[SamplerStep]:
        grid = self.grid_in_sigma(schedule, "edm")
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
        return _heun(denoise, x_T, raised_grid, churn, noise, self.correct, ends=grid.times[1:])


def _heun(denoise, x, grid: Grid, churn, noise, correct: str, ends: tuple[Tensor, ...] = ()) -> Iterator[SamplerStep]:
    weights = (*(weights.tolist() for weights in grid.first_order), *_heun_weights(grid))
    corrected = _corrected(grid, (1 / grid.ratio - 1) / 2, "heun", correct)
    walk = list(zip(grid.times, ends or grid.times[1:], strict=False))
    return _heun_steps(denoise, x, walk, churn, noise, weights, corrected)


def _heun_steps(denoise, x, walk: list[tuple[Tensor, Tensor]], churn, noise, weights, corrected):
    keep, gain, at_start, at_end = weights
    for i, (t, s) in enumerate(walk):
        if churn is not None and churn[1][i] > 0:
            x = combined(x, churn[0][i], (churn[1][i], noise(i)))
        x_0 = denoise(x, t).x_0
        ahead = combined(x, keep[i], (gain[i], x_0))
        if corrected[i]:
            ahead = combined(x, keep[i], (at_start[i], x_0), (at_end[i], denoise(ahead, s).x_0))
        x = ahead
        yield SamplerStep(i, float(s), x, x_0)


@dataclass(frozen=True)
class DPM2(GridSampler):
    """The midpoint method, its midpoint in log sigma (Karras et al. 2022's DPM-Solver-2, as k-diffusion's dpm_2):
    2 num_steps - 1 evaluations."""

    num_steps: int | None = 18
    correct: str = "auto"

    favours = "log_snr_by_steps"
    deterministic = True

    def __call__(self, denoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise) -> Iterator[SamplerStep]:
        grid = self.grid_in_sigma(schedule, "dpm2")
        middle = torch.where(grid.end.sigma > 0, (grid.start.log_snr + grid.end.log_snr) / 2, grid.start.log_snr)
        corrected = _corrected(grid, 1 / grid.ratio.sqrt() - grid.ratio.sqrt(), "dpm2", self.correct)
        return _dpm_2(denoise, x_T, grid, schedule.time_of(middle), schedule, corrected)


def _dpm_2(denoise, x: Tensor, grid: Grid, middle: Tensor, schedule, corrected: list[bool]) -> Iterator[SamplerStep]:
    level = schedule.level(middle)
    to_middle = Grid((), grid.start, NoiseLevel(level.alpha, level.sigma)).first_order
    keep_m, gain_m = (weights.tolist() for weights in to_middle)
    keep, gain = (weights.tolist() for weights in grid.first_order)
    root = grid.ratio.sqrt()
    slope = grid.end.alpha * (root - 1 / root)  # (sigma' - sigma) / sigma_middle
    at_start, at_middle = (slope * (1 - root)).tolist(), (-slope).tolist()
    for i, (t, t_m, s) in enumerate(zip(grid.times, middle.unbind(), grid.ends, strict=False)):
        x_0 = denoise(x, t).x_0
        if corrected[i]:
            x_m = combined(x, keep_m[i], (gain_m[i], x_0))
            x = combined(x, keep[i], (at_start[i], x_0), (at_middle[i], denoise(x_m, t_m).x_0))
        else:
            x = combined(x, keep[i], (gain[i], x_0))
        yield SamplerStep(i, s, x, x_0)
