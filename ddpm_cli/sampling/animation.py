"""The walk of a few images, kept while it is made: an animation from noise to image, and a strip of the estimates."""

from pathlib import Path

from torch import Tensor

from ddpm_cli.diffusion.samplers import SamplerStep
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.media.base import Medium
from ddpm_cli.sampling import pictures

_IMAGES, _FRAMES = 16, 50
_STRIP_IMAGES = 6


class Animation:
    """Holds at most 100 stages of the first images, evenly spread over however many steps there are, and the last.

    How many there will be is the sampler's affair, so every stage is kept at first; whenever there are 100, every other
    one goes and from then on only every second, fourth, ... step is taken.
    """

    def __init__(self, schedule: NoiseSchedule, medium: Medium) -> None:
        self._schedule, self._medium = schedule, medium
        self._stride, self._count = 1, 0
        self._frames: list[Tensor] = []  # of x_t
        self._estimates: list[Tensor] = []  # of x_0
        self._last: SamplerStep | None = None

    def add(self, step: SamplerStep) -> None:
        self._last = step
        if self._count % self._stride == 0:
            self._keep(step)
        self._count += 1
        if len(self._frames) >= 2 * _FRAMES:
            self._frames, self._estimates = self._frames[::2], self._estimates[::2]
            self._stride *= 2

    def save(self, out: Path) -> None:
        """x_0.png, a row an image, the estimates from left to right; then walk.gif, by which a run that goes on sees
        that both are there."""
        assert self._last is not None, "a sampler makes at least one step"
        if (self._count - 1) % self._stride:
            self._keep(self._last)
        show = self._medium.pictures
        pictures.save_png(pictures.strip([show(stage) for stage in pictures.shown(self._estimates)]), out / "x_0.png")
        pictures.save_gif([pictures.grid(show(frame)) for frame in self._frames], out / "walk.gif")

    def _keep(self, step: SamplerStep) -> None:
        level = self._schedule.level(step.t)
        scale = float((level.alpha**2 + level.sigma**2).rsqrt())  # EDM's x_T would be black and white
        self._frames.append(self._medium.to_file(step.x[:_IMAGES] * scale).cpu())
        self._estimates.append(self._medium.to_file(step.x_0[:_STRIP_IMAGES]).cpu())
