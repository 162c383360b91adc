"""What all samplers share: the step they yield, and the grid of times and noise levels they walk on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised
from ddpm_cli.diffusion.gaussian import NoiseLevel
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.spacing import LEVEL_SPACINGS, Spacing

BoundDenoise = Callable[[Tensor, Tensor], Denoised]
StepNoise = Callable[[int], Tensor]


@dataclass(frozen=True)
class SamplerStep:
    """x is the state at time t after step `index` (counted from 0); x_0 the estimate the step was made with."""

    index: int
    t: float
    x: Tensor
    x_0: Tensor


@dataclass(frozen=True)
class Grid:
    """The times of a walk, 0-dim float64 on the CPU, and the levels its steps start from and end at: (num_steps,)."""

    times: tuple[Tensor, ...]
    start: NoiseLevel
    end: NoiseLevel

    @property
    def ends(self) -> list[float]:
        """The time each step ends at."""
        return [float(t) for t in self.times[1:]]

    @property
    def ratio(self) -> Tensor:
        """(sigma/alpha at the end) / (sigma/alpha at the start) of each step: in [0, 1), 0 into the clean image."""
        return (self.end.sigma / self.end.alpha) / (self.start.sigma / self.start.alpha)

    @property
    def first_order(self) -> tuple[Tensor, Tensor]:
        """(keep, gain): keep x + gain x_0 is the step of DDIM and Euler (Song, Meng and Ermon 2020, Eq. 13)."""
        keep = self.end.sigma / self.start.sigma
        return keep, self.end.alpha - self.start.alpha * keep


def grid_of(schedule: NoiseSchedule, num_steps: int | None, spacing: Spacing) -> Grid:
    times = schedule.times(num_steps, spacing)
    level = schedule.level(times)
    start, end = NoiseLevel(level.alpha[:-1], level.sigma[:-1]), NoiseLevel(level.alpha[1:], level.sigma[1:])
    return Grid(times.unbind(), start, end)


def grid_in_sigma(schedule: NoiseSchedule, num_steps: int | None, spacing: Spacing, option: str) -> Grid:
    """The grid of a sampler that steps in sigma/alpha; ValueError where it would start without any signal."""
    by_level = (spacing or schedule.spacing) in LEVEL_SPACINGS  # these cannot be computed at all
    grid = None if schedule.zero_terminal_snr and by_level else grid_of(schedule, num_steps, spacing)
    if grid is None or float(grid.start.alpha[0]) == 0:
        raise ValueError(
            f"sampler={option} steps in sigma/alpha, which is infinite at zero terminal SNR; choose sampler=ddim, "
            "dpmpp or unipc with sampler.spacing=trailing"
        )
    return grid


def combined(x: Tensor, keep: float, *terms: tuple[float, Tensor]) -> Tensor:
    """keep x + the sum of weight times tensor, in one new tensor."""
    result = torch.mul(x, keep)
    for weight, tensor in terms:
        result.add_(tensor, alpha=weight)
    return result


def run(steps: Iterator[SamplerStep]) -> Tensor:
    """The image a sampler ends at."""
    for step in steps:
        last = step
    return last.x
