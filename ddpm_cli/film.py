"""The walk of a few images, kept while it is made: frames for a film, and a strip of the estimates of x_0."""

from pathlib import Path

import torch
from torch import Tensor

from ddpm_cli import pictures
from ddpm_cli.data.store import to_file
from ddpm_cli.diffusion.samplers import SamplerStep
from ddpm_cli.diffusion.schedule import NoiseSchedule

_IMAGES, _FRAMES = 16, 50
_STRIP_IMAGES, _STRIP_STAGES = 6, 10


class Film:
    """Holds at most 100 stages of the first images, evenly spread over however many steps there are, and the last."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self._schedule = schedule
        self._stride, self._count = 1, 0
        self._frames: list[Tensor] = []
        self._estimates: list[Tensor] = []
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
        """walk.gif, and x_0.png: a row an image, the estimates from left to right."""
        assert self._last is not None, "a sampler makes at least one step"
        if (self._count - 1) % self._stride:
            self._keep(self._last)
        pictures.save_film([pictures.grid(frame) for frame in self._frames], out / "walk.gif")
        stages = min(_STRIP_STAGES, len(self._estimates))
        shown = torch.linspace(0, len(self._estimates) - 1, stages).round().long().tolist()
        strip = torch.stack([self._estimates[i][:_STRIP_IMAGES] for i in shown], 1).flatten(0, 1)
        pictures.save_png(pictures.grid(strip, columns=stages), out / "x_0.png")

    def _keep(self, step: SamplerStep) -> None:
        level = self._schedule.level(step.t)
        scale = float((level.alpha**2 + level.sigma**2).rsqrt())  # EDM's x_T would be black and white
        self._frames.append(to_file(step.x[:_IMAGES] * scale).cpu())
        self._estimates.append(to_file(step.x_0[:_IMAGES]).cpu())
