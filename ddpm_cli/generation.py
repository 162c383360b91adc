"""Drawing images from a denoiser: which noise and which label image k gets, and the walk of a batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Cond, Denoise
from ddpm_cli.diffusion.samplers import SamplerStep
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.errors import UserError
from ddpm_cli.seeding import generator

_NOISE, _LABEL, _CLASS_NOISE = 201, 202, 203


@dataclass(frozen=True)
class ImageNoise:
    """noise(i): step i's standard normal (B, *item_shape). Image k's is a function of (seed, k, i), drawn on the CPU,
    so that an image depends on neither its batch nor the device."""

    seed: int
    indices: Sequence[int]
    item_shape: tuple[int, ...]
    device: torch.device

    def __call__(self, i: int) -> Tensor:
        draws = [
            torch.randn(self.item_shape, generator=generator("cpu", self.seed, _NOISE, k, i)) for k in self.indices
        ]
        return torch.stack(draws).to(self.device, non_blocking=True)


@dataclass(frozen=True)
class ClassNoise:
    """draw(t, E): standard normal (B, E) for the class embeddings (CADS); image k's a function of (seed, k, t)."""

    seed: int
    indices: Sequence[int]

    def __call__(self, t: int, width: int) -> Tensor:
        draws = [torch.randn(width, generator=generator("cpu", self.seed, _CLASS_NOISE, k, t)) for k in self.indices]
        return torch.stack(draws)


def walk(
    denoise: Denoise,
    sampler: Any,
    schedule: NoiseSchedule,
    variance,
    *,
    item_shape: tuple[int, ...],
    seed: int,
    indices: Sequence[int],
    cond: Cond,
    device: torch.device,
) -> Iterator[SamplerStep]:
    """The steps from noise to the images numbered `indices`, of shape (B, *item_shape), in the model's range."""
    noise = ImageNoise(seed, indices, item_shape, device)
    x_T = schedule.prior(noise(-1))
    return sampler(lambda x_t, t: denoise(x_t, t, cond), x_T, schedule, variance, noise)


def choose_labels(wanted, indices: Sequence[int], num_classes: int, seed: int) -> Tensor:
    """(B,) int64 class labels of the images numbered `indices`.

    wanted: None draws a class at random for each image, "each" takes all classes in turn, "none" the null label
    (num_classes), a list is repeated in turn.
    """
    if wanted is None:
        rows = [int(torch.randint(num_classes, (), generator=generator("cpu", seed, _LABEL, k))) for k in indices]
        return torch.tensor(rows)
    if wanted == "none":
        return torch.full((len(indices),), num_classes)
    choices = list(range(num_classes)) if wanted == "each" else [wanted] if isinstance(wanted, int) else list(wanted)
    for label in choices:
        if not 0 <= label < num_classes:
            raise UserError(f"labels must lie in 0..{num_classes - 1} (the checkpoint's classes), got {label}")
    return torch.tensor([choices[k % len(choices)] for k in indices])
