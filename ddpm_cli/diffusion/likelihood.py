"""How probable a model finds images: the variational bound, term by term, in bits per dimension."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised
from ddpm_cli.diffusion.gaussian import diffuse
from ddpm_cli.diffusion.losses import bound_term, prior_term
from ddpm_cli.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True)
class Bound:
    """The bound of each image, (B,), and its parts: prior L_T (B,) and the terms of t = 1..T, (B, T), all in bits per
    dimension."""

    total: Tensor
    prior: Tensor
    terms: Tensor


def variational_bound(
    denoise: Callable[[Tensor, Tensor], Denoised],
    x_0: Tensor,
    schedule: NoiseSchedule,
    variance,
    noise: Callable[[int], Tensor],
) -> Bound:
    """The full bound L_T + sum of L_{t-1} + L_0 (DDPM Eq. 5) with one draw of noise(t) a term: T passes of the network.

    x_0: (B, ...) in [-1, 1], on the 256 values of an 8-bit image. denoise(x_t, t) has its conditioning bound.
    """

    def terms() -> Iterator[Tensor]:
        for step in range(1, schedule.num_timesteps + 1):
            t = torch.full((len(x_0),), step, device=x_0.device)
            x_t = diffuse(x_0, noise(step), schedule.level(t))
            yield bound_term(denoise(x_t, t), x_0, x_t, t, schedule, variance)

    each, prior = torch.stack(list(terms()), dim=1), prior_term(x_0, schedule)
    return Bound(prior + each.sum(1), prior, each)
