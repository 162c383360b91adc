"""What a run shows of itself while it trains: a grid from fixed noise and a strip from noise to image, by the EMA
weights."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice, pairwise
from statistics import median

import torch
from torch import Tensor

from ddpm_cli import pictures
from ddpm_cli.data.store import to_file
from ddpm_cli.diffusion.denoiser import Cond, Denoised, Denoiser, clipped
from ddpm_cli.generation import choose_labels, walk

_STRIP_IMAGES, _STRIP_STAGES = 4, 10


@dataclass(frozen=True)
class Preview:
    """Draws the same images (noise and labels fixed by seed) at every call, so that training is seen in them."""

    sampler: object
    item_shape: tuple[int, ...]
    num_images: int
    num_classes: int | None  # None: unconditional
    seed: int
    device: torch.device
    batch_size: int = 64

    @torch.inference_mode()
    def __call__(self, denoiser: Denoiser) -> tuple[Tensor, Tensor]:
        """uint8 images (num_images, C, H, W), and the strip: (4 rows of 10 stages, C, H, W) of the first four."""
        images: list[Tensor] = []
        strip = torch.empty(0)
        for start in range(0, self._total, self.batch_size):
            indices = range(start, min(start + self.batch_size, self._total))
            stages = [
                to_file(step.x[:_STRIP_IMAGES] if start == 0 else step.x[:0])
                for step in self._walk(denoiser, indices, images)
            ]
            if start == 0:
                shown = torch.linspace(0, len(stages) - 1, min(_STRIP_STAGES, len(stages))).round().long().tolist()
                strip = torch.stack([stages[i] for i in shown], 1).flatten(0, 1)
        return torch.cat(images), strip

    @torch.inference_mode()
    def seconds(self, denoiser: Denoiser, now: Callable[[], float], most: float) -> float:
        """About what a call takes, from the first steps of its walk, which are made for `most` seconds."""
        indices = range(min(self.batch_size, self._total))
        times = [now()]
        for step in islice(self._walk(denoiser, indices, []), 6):
            to_file(step.x[:_STRIP_IMAGES])
            times.append(now())
            if times[-1] - times[0] > most:
                break
        spans = [after - before for before, after in pairwise(times)]
        return median(spans[1:] or spans) * self._num_steps(denoiser) * self._total / len(indices)

    def _num_steps(self, denoiser: Denoiser) -> int:
        """The steps of a walk: those that the sampler makes with an image of one pixel."""
        pixel = (1,) * len(self.item_shape)
        stages = walk(
            lambda x_t, t, cond: Denoised(torch.zeros_like(x_t), torch.zeros_like(x_t)),
            self.sampler,
            denoiser.schedule,
            denoiser.variance,
            item_shape=pixel,
            seed=self.seed,
            indices=range(1),
            cond=None,
            device=torch.device("cpu"),
        )
        return sum(1 for _ in stages)

    @property
    def _total(self) -> int:
        """How many images there are: whole rows of one column a class."""
        columns = self.num_classes or self.num_images
        return min(self.num_images, (self.num_images // columns or 1) * columns)

    def _walk(self, denoiser: Denoiser, indices: range, images: list[Tensor]):
        cond: Cond = None
        if self.num_classes is not None:
            cond = {"labels": choose_labels("each", indices, self.num_classes, self.seed).to(self.device)}
        last = None
        steps = walk(
            clipped(denoiser),
            self.sampler,
            denoiser.schedule,
            denoiser.variance,
            item_shape=self.item_shape,
            seed=self.seed,
            indices=indices,
            cond=cond,
            device=self.device,
        )
        for last in steps:
            yield last
        assert last is not None, "a sampler makes at least one step"
        images.append(to_file(last.x))


def grid_of(images: Tensor, num_classes: int | None):
    """A grid with one column a class where that fills rows, else a square one."""
    return pictures.grid(
        images, columns=num_classes if num_classes and num_classes <= 20 and len(images) >= num_classes else None
    )


def strip_of(strip: Tensor):
    return pictures.grid(strip, columns=max(1, len(strip) // _STRIP_IMAGES))
