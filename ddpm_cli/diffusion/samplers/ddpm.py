"""Samplers of the DDPM family: ancestral, DDIM and its inversion, multistep consistency."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.diffusion.gaussian import NoiseLevel, posterior_coefficients
from ddpm_cli.diffusion.samplers.base import BoundDenoise, Grid, GridSampler, SamplerStep, StepNoise, combined
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.spacing import Spacing


@dataclass(frozen=True)
class Ancestral(GridSampler):
    """x_s ~ N(posterior mean at the estimated x_0, sigma_theta²) (DDPM Algorithm 2), on any part of the times."""

    def __call__(self, denoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise) -> Iterator[SamplerStep]:
        grid = self.grid(schedule)
        c_0, c_t, posterior_variance = posterior_coefficients(grid.start, grid.end)
        floor = posterior_variance[-2] if len(posterior_variance) > 1 else posterior_variance[0]
        stds = None
        if not variance.learned:
            stds = (0.5 * variance(None, grid.start, grid.end, floor)).exp().tolist()
            stds = [min(std, variance.most_at_last) if s == 1 else std for std, s in zip(stds, grid.ends, strict=True)]

        def std(i: int, raw: Tensor | None) -> Tensor | float:
            if stds is not None:
                return stds[i]
            start, end = (NoiseLevel(level.alpha[i], level.sigma[i]) for level in (grid.start, grid.end))
            return (0.5 * variance(raw, start, end, floor)).exp()

        return _ancestral(denoise, x_T, noise, grid, c_0.tolist(), c_t.tolist(), std)


def _ancestral(denoise, x, noise, grid: Grid, c_0: list[float], c_t: list[float], std) -> Iterator[SamplerStep]:
    for i, (t, s) in enumerate(zip(grid.times, grid.ends, strict=False)):
        denoised = denoise(x, t)
        x = combined(denoised.x_0, c_0[i], (c_t[i], x))
        if s > 0:
            scale = std(i, denoised.raw)
            x.addcmul_(scale.to(x), noise(i)) if isinstance(scale, Tensor) else x.add_(noise(i), alpha=scale)
        yield SamplerStep(i, s, x, denoised.x_0)


@dataclass(frozen=True)
class DDIM(GridSampler):
    """DDIM (Song, Meng and Ermon 2020, Eq. 12, 16); eta = 1 is ancestral with the posterior's variance."""

    num_steps: int | None = 50
    eta: float = 0.0

    @property
    def deterministic(self) -> bool:
        return self.eta == 0

    def __call__(self, denoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise) -> Iterator[SamplerStep]:
        grid = self.grid(schedule)
        added = self.eta**2 * posterior_coefficients(grid.start, grid.end)[2]
        kept = (grid.end.sigma**2 - added).clamp(min=0).sqrt() / grid.start.sigma  # of the noise, over sigma_t
        c_0 = grid.end.alpha - kept * grid.start.alpha
        return _linear(denoise, x_T, noise, grid, kept.tolist(), c_0.tolist(), added.sqrt().tolist())


def _linear(denoise, x, noise, grid: Grid, keep: list[float], gain: list[float], std) -> Iterator[SamplerStep]:
    for i, (t, s) in enumerate(zip(grid.times, grid.ends, strict=False)):
        x_0 = denoise(x, t).x_0
        x = combined(x_0, gain[i], (keep[i], x))
        if std[i] > 0:
            x.add_(noise(i), alpha=std[i])
        yield SamplerStep(i, s, x, x_0)


@dataclass(frozen=True)
class Consistency(GridSampler):
    """Each estimate of x_0 noised anew to the next time (Song et al. 2023, Algorithm 1): for models that
    loss=consistency has tuned, whose first estimate is a drawn image already.

    spacing None: sigma / alpha falls by equal factors from sigma_max, or that of T where it is less, to sigma_last. One
    step has the first alone.
    """

    num_steps: int | None = 2
    sigma_max: float = 80.0
    sigma_last: float = 1.0

    def spacing_on(self, schedule: NoiseSchedule) -> Spacing:
        if self.spacing is not None:
            return self.spacing
        end = schedule.level(float(schedule.num_timesteps))
        first = min(max(self.sigma_max, schedule.prior_scale), float(end.sigma / end.alpha))  # x_T is scaled for T
        count = self.num_steps or schedule.num_timesteps
        log_sigma = torch.linspace(math.log(first), math.log(min(self.sigma_last, first)), count, dtype=torch.float64)
        return [*schedule.time_of(-2 * log_sigma).tolist(), 0.0]

    def __call__(self, denoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise) -> Iterator[SamplerStep]:
        grid = self.grid(schedule)
        none = [0.0] * len(grid.end.alpha)
        return _linear(denoise, x_T, noise, grid, none, grid.end.alpha.tolist(), grid.end.sigma.tolist())


@dataclass(frozen=True)
class DDIMInversion(GridSampler):
    """DDIM's map run from the clean image to noise (Song, Meng and Ermon 2020, Section 4.3): x_T is given x_0.

    Each step is guessed with the last estimate and then made the inverse of DDIM's step with the estimate at the guess,
    which the next guess uses: one evaluation a step. Use it without clipping, or DDIM will not find the way back.
    """

    num_steps: int | None = 50

    deterministic = True

    def __call__(
        self, denoise: BoundDenoise, x_T: Tensor, schedule: NoiseSchedule, variance=None, noise: StepNoise | None = None
    ) -> Iterator[SamplerStep]:
        times = self.times(schedule).flip(0)
        level = schedule.level(times)
        if float(level.sigma[0]) > 0:
            raise ValueError("sampler.spacing: inversion starts from the clean image, so the times must end at 0")
        down = Grid((), NoiseLevel(level.alpha[2:], level.sigma[2:]), NoiseLevel(level.alpha[1:-1], level.sigma[1:-1]))
        up = Grid((), down.end, down.start)
        return _inversion(denoise, x_T, times, float(level.alpha[1]), up.first_order, down)


def _inversion(denoise, x_0: Tensor, times: Tensor, alpha: float, up, down: Grid) -> Iterator[SamplerStep]:
    t = times[1:].unbind()
    x = x_0 * alpha
    estimate = denoise(x, t[0]).x_0
    x = combined(x, 2.0, (-alpha, estimate))  # alpha x_0 + sigma noise, the noise being alpha (x_0 - estimate) / sigma
    yield SamplerStep(0, float(t[0]), x, estimate)
    keep, gain = (weights.tolist() for weights in up)
    keep_down, gain_down = (weights.tolist() for weights in down.first_order)
    # (1 - r) / r multiplies the guess's error: above 1 the guess itself is better.
    invertible = (down.ratio > 0.5).tolist()
    for i in range(len(keep)):
        guess = combined(x, keep[i], (gain[i], estimate))
        estimate = denoise(guess, t[i + 1]).x_0
        x = combined(x, 1 / keep_down[i], (-gain_down[i] / keep_down[i], estimate)) if invertible[i] else guess
        yield SamplerStep(i + 1, float(t[i + 1]), x, estimate)
