"""Samplers: (denoise, x_T, schedule, variance, noise) -> one SamplerStep after another, from noise to image.

denoise(x_t, t) -> Denoised has its conditioning bound; noise(i) gives step i's standard normal tensor of x's shape. The
coefficients of all steps are computed at once in float64 and used as plain numbers: no host sync in the loop.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised
from ddpm_cli.diffusion.gaussian import NoiseLevel, posterior_coefficients
from ddpm_cli.diffusion.schedule import NoiseSchedule

BoundDenoise = Callable[[Tensor, Tensor], Denoised]
StepNoise = Callable[[int], Tensor]


@dataclass(frozen=True)
class SamplerStep:
    """x is the state at time t after step `index` (counted from 0); x_0 the estimate the step was made with."""

    index: int
    t: float
    x: Tensor
    x_0: Tensor


def _levels(schedule: NoiseSchedule, times: Tensor) -> tuple[NoiseLevel, NoiseLevel]:
    """The levels a step starts from and ends at, each (num_steps,)."""
    level = schedule.level(times)
    return NoiseLevel(level.alpha[:-1], level.sigma[:-1]), NoiseLevel(level.alpha[1:], level.sigma[1:])


@dataclass(frozen=True)
class Ancestral:
    """x_s ~ N(posterior mean at the estimated x_0, sigma_theta²) (DDPM Algorithm 2), on any sub-sequence of the
    times."""

    num_steps: int | None = None
    spacing: str | None = None

    def __call__(
        self, denoise: BoundDenoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise: StepNoise
    ) -> Iterator[SamplerStep]:
        times = schedule.times(self.num_steps, self.spacing)
        start, end = _levels(schedule, times)
        c_0, c_t, posterior_variance = posterior_coefficients(start, end)
        floor = posterior_variance[-2] if len(times) > 2 else posterior_variance[0]
        x = x_T
        for i, (a, b, t, s) in enumerate(zip(c_0.tolist(), c_t.tolist(), times[:-1], times[1:].tolist(), strict=True)):
            denoised = denoise(x, t)
            x = torch.mul(denoised.x_0, a).add_(x, alpha=b)
            if s > 0:
                level_t, level_s = NoiseLevel(start.alpha[i], start.sigma[i]), NoiseLevel(end.alpha[i], end.sigma[i])
                std = (0.5 * variance(denoised.raw, level_t, level_s, floor)).exp()
                x.addcmul_(std.to(x), noise(i)) if std.ndim else x.add_(noise(i), alpha=float(std))
            yield SamplerStep(i, s, x, denoised.x_0)


@dataclass(frozen=True)
class DDIM:
    """DDIM (Song, Meng and Ermon 2020, Eq. 12 and 16); eta = 0 is deterministic, eta = 1 ancestral with the
    posterior's variance."""

    num_steps: int | None = 50
    spacing: str | None = None
    eta: float = 0.0

    def __call__(
        self, denoise: BoundDenoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise: StepNoise
    ) -> Iterator[SamplerStep]:
        times = schedule.times(self.num_steps, self.spacing)
        start, end = _levels(schedule, times)
        added = self.eta**2 * posterior_coefficients(start, end)[2]
        kept = (end.sigma**2 - added).clamp(min=0).sqrt() / start.sigma  # of the estimated noise, over sigma_t
        c_0 = (end.alpha - kept * start.alpha).tolist()
        kept_, std = kept.tolist(), added.sqrt().tolist()
        x = x_T
        for i, (t, s) in enumerate(zip(times[:-1], times[1:].tolist(), strict=True)):
            x_0 = denoise(x, t).x_0
            x = torch.mul(x_0, c_0[i]).add_(x, alpha=kept_[i])
            if std[i] > 0:
                x.add_(noise(i), alpha=std[i])
            yield SamplerStep(i, s, x, x_0)


@dataclass(frozen=True)
class DPMSolverPP:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2): second order from the last two estimates; its first step is
    DDIM."""

    num_steps: int | None = 20
    spacing: str | None = None

    def __call__(
        self, denoise: BoundDenoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise: StepNoise
    ) -> Iterator[SamplerStep]:
        times = schedule.times(self.num_steps, self.spacing)
        start, end = _levels(schedule, times)
        h = (end.log_snr - start.log_snr) / 2
        keep, gain = (end.sigma / start.sigma).tolist(), (-end.alpha * torch.expm1(-h)).tolist()
        # D = (1 + c) x_0 - c previous, c = h_i / (2 h_{i-1}); the last step's h is infinite and its result the
        # estimate itself.
        carry = [0.0, *(h[1:-1] / (2 * h[:-2])).tolist(), 0.0]
        x, previous = x_T, None
        for i, (t, s) in enumerate(zip(times[:-1], times[1:].tolist(), strict=True)):
            x_0 = denoise(x, t).x_0
            x = torch.mul(x, keep[i]).add_(x_0, alpha=gain[i] * (1 + carry[i]))
            if carry[i] and previous is not None:
                x.add_(previous, alpha=-gain[i] * carry[i])
            previous = x_0
            yield SamplerStep(i, s, x, x_0)


def run(steps: Iterator[SamplerStep]) -> Tensor:
    """The image a sampler ends at."""
    for step in steps:
        last = step
    return last.x
