"""What a run shows of itself while it trains: a grid from fixed noise and a strip from noise to image, by the EMA
weights."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from statistics import median
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoiser, clipped
from ddpm_cli.diffusion.samplers import Sampler, SamplerStep
from ddpm_cli.media.base import Medium
from ddpm_cli.sampling import pictures
from ddpm_cli.sampling.conditions import Given, cond_of
from ddpm_cli.sampling.generate import ImageNoise, choose_labels, walk

_STRIP_IMAGES = 4
_TIMED_STEPS = 6  # the first of them warms up and does not count


class Drawn(NamedTuple):
    """What a preview shows."""

    items: Tensor  # as files hold them
    grid: Image.Image  # one column a class where that fills rows
    strip: Image.Image  # the way of the first four from noise to image


@dataclass(frozen=True)
class Preview:
    """Draws the same images (noise and labels fixed by seed) at every call, so that training is seen in them.

    Clipped and not guided: what is shown is the model, and not what guidance makes of it.
    """

    sampler: Sampler
    medium: Medium
    num_images: int
    num_classes: int | None  # None: unconditional
    seed: int
    device: torch.device
    batch_size: int = 64
    given: Given | None = None  # what they are drawn from, of a model with a condition: each is shown beside it

    @torch.inference_mode()
    def __call__(self, denoiser: Denoiser) -> Drawn:
        images: list[Tensor] = []
        stages: list[Tensor] = []
        for start in range(0, self._total, self.batch_size):
            for step in self._walk(denoiser, range(start, min(start + self.batch_size, self._total))):
                if start == 0:
                    stages.append(self.medium.to_file(step.x[:_STRIP_IMAGES]))
            images.append(self.medium.to_file(step.x))
        items, show = torch.cat(images), self.medium.pictures
        stages = [show(stage) for stage in pictures.shown(stages)]
        columns = pictures.columns_of(len(items), self.num_classes) if self.num_classes else None
        sheet = (show(items), columns) if self.given is None else self.given.sheet(items)
        return Drawn(items, pictures.grid(*sheet), pictures.strip(stages))

    @torch.inference_mode()
    def seconds(self, denoiser: Denoiser, now: Callable[[], float], most: float) -> float:
        """About what a call takes, from the first steps of its walk, which are made for `most` seconds."""
        indices = range(min(self.batch_size, self._total))
        times = [now()]
        for step in islice(self._walk(denoiser, indices), _TIMED_STEPS):
            self.medium.to_file(step.x[:_STRIP_IMAGES])
            times.append(now())
            if times[-1] - times[0] > most:
                break
        spans = [after - before for before, after in pairwise(times)]
        steps = len(self.sampler.times(denoiser.schedule)) - 1
        return median(spans[1:] or spans) * steps * self._total / len(indices)

    @property
    def _total(self) -> int:
        """How many images there are: of each class as many."""
        columns = self.num_images if self.given is not None else self.num_classes or self.num_images
        return min(self.num_images, (self.num_images // columns or 1) * columns)

    def _walk(self, denoiser: Denoiser, indices: range) -> Iterator[SamplerStep]:
        labels = None
        if self.num_classes is not None:
            known = None if self.given is None else self.given.labels_of(indices)
            labels = choose_labels("each", indices, self.num_classes, self.seed) if known is None else known
        cond = cond_of(labels, self.given, indices, self.device)
        noise = ImageNoise(self.seed, indices, self.medium.item_shape, self.device)
        denoise = clipped(denoiser, self.medium.limit)
        return walk(denoise, self.sampler, denoiser.schedule, denoiser.variance, noise, cond)
