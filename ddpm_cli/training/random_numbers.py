"""The random draws of a training step, each a function of (seed, step) and of the image's place in the global batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Cond
from ddpm_cli.seeding import generator, mix

_TIMES, _NOISE, _LABELS, _DROPOUT, _AUGMENT = 101, 102, 103, 104, 105  # one stream each, so that none shifts another


@dataclass(frozen=True)
class Draws:
    """Draws for the whole global batch, so that they depend on neither micro-batches nor ranks."""

    seed: int
    batch_size: int
    device: torch.device

    def uniform(self, step: int) -> Tensor:
        """(B,) in [0, 1): where each image's t comes from."""
        return self._rand(_TIMES, step, self.batch_size)

    def noise(self, step: int, item_shape: tuple[int, ...]) -> Tensor:
        """(B, *item_shape) standard normal, float32."""
        shape = (self.batch_size, *item_shape)
        return torch.randn(shape, device=self.device, generator=generator(self.device, self.seed, _NOISE, step))

    def dropped(self, step: int, probability: float) -> Tensor:
        """(B,) bool: whose label is replaced by the null label, each image on its own."""
        return self._rand(_LABELS, step, self.batch_size) < probability

    def augment(self, step: int, count: int) -> Tensor:
        """(B, count) in [0, 1): how each image is changed."""
        return self._rand(_AUGMENT, step, self.batch_size, count)

    def _rand(self, stream: int, step: int, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.device, generator=generator(self.device, self.seed, stream, step))

    def seed_dropout(self, step: int, part: int) -> None:
        """Seeds the default generators, which dropout draws from; `part` counts micro-batches over all ranks."""
        torch.manual_seed(mix(self.seed, _DROPOUT, step, part))


def conditioning(labels: Tensor | None, dropped: Tensor, null_label: int | None) -> Cond:
    """The network's cond: labels with the dropped ones replaced by the null label; None for an unconditional model."""
    if labels is None or null_label is None:
        return None
    return {"labels": torch.where(dropped, null_label, labels)}
