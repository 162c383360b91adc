"""The distribution of t in training: (u, schedule) -> (t, importance).

u: (B,) uniform in [0, 1), one number an image of the global batch. t: (B,), integer in 1..T for a table. importance:
(B,), the factor that keeps the loss unbiased where t is not uniform.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.diffusion.schedule import NoiseSchedule


def _to_timestep(u: Tensor, num_timesteps: int) -> Tensor:
    return (u.double() * num_timesteps).long().clamp(max=num_timesteps - 1) + 1


@dataclass(frozen=True)
class Uniform:
    """Every t alike, each image on its own (Ho et al. 2020)."""

    def __call__(self, u: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        return _to_timestep(u, schedule.num_timesteps), torch.ones_like(u)


@dataclass(frozen=True)
class Stratified:
    """One uniform draw, the rest of the batch spread evenly from it: less variance, same mean (Kingma et al. 2021,
    appendix I)."""

    def __call__(self, u: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        offsets = torch.arange(len(u), dtype=torch.float64, device=u.device) / len(u)
        return _to_timestep((u[0] + offsets) % 1, schedule.num_timesteps), torch.ones_like(u)
