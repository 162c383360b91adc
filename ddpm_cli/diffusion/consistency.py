"""Consistency tuning: a trained denoiser learns that all noise levels of one path have the same image."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Cond, Denoiser
from ddpm_cli.diffusion.gaussian import diffuse, expand
from ddpm_cli.diffusion.losses import Loss, LossTerms, mean_flat
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.weighting import Weighting


@dataclass(frozen=True)
class Consistency(Loss):
    """The estimate of x_0 at t against the one at a less noisy r, which is not trained (Geng et al. 2024, Eq. 11-14):

        w (sqrt(mean |x_0_hat(x_t, t) - x_0_hat(x_r, r)|² + huber_c²) - huber_c),    w = sqrt(weight(level)) / (1 - r/t)

    with x_r of the same image, noise and dropout as x_t, and t and r short for their sigma / alpha. With
    weighting=epsilon w is the paper's 1 / (t - r). r/t = 1 - n(t) / q^stage (see `step_ratio`) goes to 1 over the
    stages of the run: the larger a step, the more the estimate is of a mean of images, the smaller, of the end of the
    ODE's walk. Below the noise of t = 1 there is the clean image alone, whose estimate is itself.
    """

    weighting: Weighting
    q: float = 2.0
    num_stages: int = 8
    k: float = 8.0
    b: float = 1.0
    huber_c: float = 0.001
    progress: float = field(default=0.0, kw_only=True)  # in [0, 1): see Loss.at

    one_step = True

    def at(self, progress: float) -> "Consistency":
        return replace(self, progress=progress)

    @property
    def stage(self) -> int:
        """1 to num_stages, each of the same share of the run's steps."""
        return 1 + min(int(self.progress * self.num_stages), self.num_stages - 1)

    def step_ratio(self, t: Tensor) -> Tensor:
        """r/t in [0, 1) for t = sigma / alpha; n(t) = 1 + k sigmoid(-b t) (Geng et al. 2024, Eq. 14)."""
        return (1 - (1 + self.k * torch.sigmoid(-self.b * t)) / self.q**self.stage).clamp(min=0)

    def __call__(self, denoiser: Denoiser, x_0: Tensor, cond: Cond, t: Tensor, noise: Tensor) -> LossTerms:
        schedule = denoiser.schedule
        level = schedule.level(t)
        r, ratio = self._earlier(t, schedule)
        with torch.no_grad(), same_draws_after(x_0.device):
            target = denoiser(diffuse(x_0, noise, schedule.level(r)), r, cond).x_0
        target = torch.where(expand(ratio, x_0) == 0, x_0, target)
        error = mean_flat((denoiser(diffuse(x_0, noise, level), t, cond).x_0 - target) ** 2)
        weight = self.weighting(level)
        distance = (error + self.huber_c**2).sqrt() - self.huber_c
        total = (weight.sqrt() / (1 - ratio)).to(error.dtype) * distance
        return LossTerms(self.weighting.balance(total, level), mse=weight.to(error.dtype) * error.detach())

    def _earlier(self, t: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        """The time r in [1, T], float64, and the ratio of its sigma / alpha to that of t: 0 for the clean image."""
        level = schedule.level(t)
        ratio = self.step_ratio(level.sigma / level.alpha)
        log_snr = level.log_snr - 2 * ratio.log()
        ratio = torch.where(log_snr > schedule.level(torch.ones_like(t)).log_snr, 0.0, ratio)
        return schedule.time_of(log_snr), ratio


@contextmanager
def same_draws_after(device: torch.device) -> Iterator[None]:
    """What is drawn from the default generators behind it (dropout) is what was drawn inside."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
