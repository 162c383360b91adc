"""Which noise and which label image k gets, and the walk: a batch's steps from noise to images."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Cond, Denoise
from ddpm_cli.diffusion.samplers import Sampler, SamplerStep
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.variance import Variance
from ddpm_cli.seeding import generator
from ddpm_cli.system.ahead import Ahead

# Names of the streams of random numbers; another number, and every image is another one.
_NOISE, _LABEL, _CLASS_NOISE = 201, 202, 203


class ImageNoise:
    """noise(i): step i's standard normal (B, *item_shape), x_T's for i = -1. Image k's is a function of (seed, k, i).

    Drawn on the CPU, image by image, so that an image depends on neither its batch nor the device. For a GPU that takes
    longer than its network does, so there a thread draws the noise of the next step meanwhile; on a CPU it would take
    the processor from the network.
    """

    def __init__(self, seed: int, indices: Sequence[int], item_shape: tuple[int, ...], device: torch.device):
        self.seed, self.indices, self.item_shape, self.device = seed, indices, item_shape, device
        self._ahead = Ahead(self._of_step, lambda i: i + 1) if device.type == "cuda" else None

    def __call__(self, i: int) -> Tensor:
        # Not beyond x_T's, which is all that most samplers ask for.
        made = self._of_step(i) if self._ahead is None or i < 0 else self._ahead(i)
        return made.to(self.device, non_blocking=True)

    def _of_step(self, i: int) -> Tensor:
        made = self._normal(_NOISE, i, *self.item_shape)
        return made.pin_memory() if self.device.type == "cuda" else made

    def of_classes(self, t: int, width: int) -> Tensor:
        """Standard normal (B, width) for the class embeddings at time t (CADS): a function of (seed, k, t)."""
        return self._normal(_CLASS_NOISE, t, width)

    def _normal(self, stream: int, i: int, *shape: int) -> Tensor:
        streams = [generator("cpu", self.seed, stream, k, i) for k in self.indices]
        return torch.stack([torch.randn(shape, generator=numbers) for numbers in streams])


def walk(
    denoise: Denoise,
    sampler: Sampler,
    schedule: NoiseSchedule,
    variance: Variance,
    noise: ImageNoise,
    cond: Cond = None,
) -> Iterator[SamplerStep]:
    """The steps from pure noise to the images whose `noise` it is, (B, *item_shape) in the model's range.

    The last step's x are the images. Nothing is computed before the first step is asked for but the noise.
    """
    return sampler(lambda x_t, t: denoise(x_t, t, cond), schedule.prior(noise(-1)), schedule, variance, noise)


def choose_labels(wanted: Any, indices: Sequence[int], num_classes: int, seed: int) -> Tensor:
    """(B,) int64 class labels of the images numbered `indices`; that they are classes is seen to before.

    wanted: None draws a class at random for each image, "each" takes all classes in turn, "none" the null label
    (num_classes), a list is repeated in turn.
    """
    if wanted is None:
        draws = [torch.randint(num_classes, (), generator=generator("cpu", seed, _LABEL, k)) for k in indices]
        return torch.stack(draws)
    names = {"each": list(range(num_classes)), "none": [num_classes]}
    choices = names[wanted] if isinstance(wanted, str) else wanted if isinstance(wanted, list) else [wanted]
    return torch.tensor([choices[k % len(choices)] for k in indices])
