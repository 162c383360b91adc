"""What all samplers share: the step they yield, and the grid of times and noise levels they walk on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import BoundDenoise
from ddpm_cli.diffusion.gaussian import NoiseLevel
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.spacing import LEVEL_SPACINGS, Spacing
from ddpm_cli.diffusion.variance import Variance

StepNoise = Callable[[int], Tensor]


@dataclass(frozen=True)
class SamplerStep:
    """x is the state at time t after step `index` (counted from 0); x_0 the estimate the step was made with."""

    index: int
    t: float
    x: Tensor
    x_0: Tensor


class Sampler(Protocol):
    """What every sampler offers; one that derives from it states what differs from these defaults."""

    num_steps: int | None = None  # None: every timestep
    spacing: Spacing = None  # None: see spacing_on
    rho: float = 7.0  # of spacing=karras
    favours: ClassVar[str | None] = None  # the spacing it is best with, docs/samplers.md; None: the schedule's own

    @property
    def deterministic(self) -> bool:
        """Whether it draws no noise, so that an image walked to noise by DDIM's inversion is found again."""
        return False

    def __call__(
        self, denoise: BoundDenoise, x_T: Tensor, schedule: NoiseSchedule, variance: Variance, noise: StepNoise
    ) -> Iterator[SamplerStep]: ...

    def spacing_on(self, schedule: NoiseSchedule) -> Spacing:
        """What was asked for; else what it favours, but where T has no level of a finite log-SNR the schedule's own."""
        if self.spacing is not None:
            return self.spacing
        return schedule.spacing if self.favours is None or schedule.zero_terminal_snr else self.favours

    def times(self, schedule: NoiseSchedule) -> Tensor:
        """The times it visits on this schedule, from noise to image: see spacing.times."""
        return schedule.times(self.num_steps, self.spacing_on(schedule), self.rho)

    def along(self, times: list[float], num_steps: int) -> Self:
        """The sampler on `times`, a part of its own grid of num_steps steps; one that looks back begins anew there."""
        return replace(self, num_steps=None, spacing=times)  # type: ignore[type-var]


@dataclass(frozen=True)
class GridSampler(Sampler):
    """A sampler that walks on the grid of its times."""

    num_steps: int | None = None
    spacing: Spacing = None
    rho: float = field(default=7.0, kw_only=True)

    def grid(self, schedule: NoiseSchedule) -> "Grid":
        return grid_of(schedule, self.times(schedule))

    def grid_in_sigma(self, schedule: NoiseSchedule, option: str) -> "Grid":
        """The grid of a sampler that steps in sigma/alpha; ValueError where it would start without any signal."""
        by_level = self.spacing_on(schedule) in LEVEL_SPACINGS  # these cannot be computed at all
        grid = None if schedule.zero_terminal_snr and by_level else self.grid(schedule)
        if grid is None or float(grid.start.alpha[0]) == 0:
            raise ValueError(
                f"sampler={option} steps in sigma/alpha, which is infinite at zero terminal SNR; choose sampler=ddim, "
                "dpmpp or unipc with sampler.spacing=trailing"
            )
        return grid


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


def grid_of(schedule: NoiseSchedule, times: Tensor) -> Grid:
    level = schedule.level(times)
    start, end = NoiseLevel(level.alpha[:-1], level.sigma[:-1]), NoiseLevel(level.alpha[1:], level.sigma[1:])
    return Grid(times.unbind(), start, end)


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
