"""sigma_theta(x_t, t): the variance of the reverse step from t to s.

Each is called as (raw, level_t, level_s, floor) -> log-variance, of shape (B, C, H, W) where it comes from the network
(raw is the network's variance output), else of t's shape. floor is the posterior variance of the grid's second step: it
stands in for the posterior's variance at s = 0, which is zero and has no logarithm (Ho et al. 2020's code).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ddpm_cli.diffusion.gaussian import NoiseLevel, expand, posterior_coefficients, transition


class Variance(Protocol):
    """What every variance offers; one that derives from it states what differs from these defaults."""

    learned: bool = False  # the network has a second output for it, which is trained by the bound alone
    by_measurement: bool = False  # made from what ddpm-analytic finds of a trained model, so not to train with
    most_at_last: float = math.inf  # standard deviation of the noise that a walk leaves in x_1: see Analytic

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """What it was made from by measurement; nothing before that."""
        return ()

    def __call__(self, raw: Tensor | None, level_t: NoiseLevel, level_s: NoiseLevel, floor: Tensor) -> Tensor: ...


def _clean_before(level_s: NoiseLevel) -> Tensor:
    """Whether s = 0, the clean image."""
    return level_s.sigma == 0


@dataclass(frozen=True)
class FixedSmall(Variance):
    """The posterior's variance, beta tilde: right if the data were a single point."""

    def __call__(self, raw: Tensor | None, level_t: NoiseLevel, level_s: NoiseLevel, floor: Tensor) -> Tensor:
        variance = posterior_coefficients(level_t, level_s)[2]
        return torch.where(_clean_before(level_s), floor, variance).log()


@dataclass(frozen=True)
class FixedLarge(Variance):
    """The forward step's variance, beta: right if the data were standard normal. At s = 0 it too takes the floor,
    for a better likelihood of the decoder (Ho et al. 2020's code)."""

    def __call__(self, raw: Tensor | None, level_t: NoiseLevel, level_s: NoiseLevel, floor: Tensor) -> Tensor:
        return torch.where(_clean_before(level_s), floor, transition(level_t, level_s)[1]).log()


@dataclass(frozen=True)
class LearnedRange(Variance):
    """Between beta tilde and beta, geometrically: raw in [-1, 1] spans the range (Nichol and Dhariwal 2021, Eq. 15)."""

    learned = True

    def __call__(self, raw: Tensor | None, level_t: NoiseLevel, level_s: NoiseLevel, floor: Tensor) -> Tensor:
        assert raw is not None, "the network has no variance output"
        low = expand(FixedSmall()(None, level_t, level_s, floor), raw)
        high = expand(transition(level_t, level_s)[1].log(), raw)
        share = (raw + 1) / 2
        return share * high + (1 - share) * low


@dataclass(frozen=True)
class Learned(Variance):
    """Any log-variance, by the network: raw is its distance from log beta (improved-diffusion's LEARNED has no such
    origin; with it training starts at fixed_large, and steps may be left out in sampling)."""

    learned = True

    def __call__(self, raw: Tensor | None, level_t: NoiseLevel, level_s: NoiseLevel, floor: Tensor) -> Tensor:
        assert raw is not None, "the network has no variance output"
        return raw + expand(FixedLarge()(None, level_t, level_s, floor), raw)


class Analytic(Variance):
    """The best variance that is one number a step, known without training (Bao et al. 2022, Theorem 1): the posterior's
    plus what the estimate of x_0 is off by.

    Stated in the paper by the score's norm for a perfect network; here by the measured error of the noise, which is
    best for an imperfect one too (Bao et al. 2022b) and lies near 1 at every noise level.

    last_noise: y, in steps of an 8-bit pixel, 2/255. In few steps the noise that is drawn last is large, and of x_1 no
    estimate takes it out again: there its standard deviation is bounded so that E|sigma noise| <= 2/255 y (the paper's
    Appendix on clipping, with y of 1 or 2). Walks that leave t = 1 out are as they were: on these the bound does harm
    (docs/samplers.md). None: no bound.
    """

    by_measurement = True

    def __init__(self, estimate: Mapping[str, Tensor] | None, last_noise: float | None = None):
        """estimate: log_snr (N,), falling, and noise_error (N,), the mean squared error of the noise per dimension at
        these levels; between them it is interpolated, beyond them constant. None: not measured yet."""
        self.last_noise = last_noise
        if last_noise is not None:  # E|noise| = sqrt(2/pi)
            self.most_at_last = 2 / 255 * last_noise * math.sqrt(math.pi / 2)
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}
        if estimate is not None:
            self._tables[torch.device("cpu")] = estimate["log_snr"].double(), estimate["noise_error"].double()

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """(log_snr, noise_error), or nothing."""
        return self._tables.get(torch.device("cpu"), ())

    def __call__(self, raw: Tensor | None, level_t: NoiseLevel, level_s: NoiseLevel, floor: Tensor) -> Tensor:
        c_0, _, variance = posterior_coefficients(level_t, level_s)
        # With 8-bit data in [-1, 1], no estimate need be further off than the middle: Var x_0 <= 1 (Theorem 2).
        x_0_error = (self._noise_error(level_t) / level_t.snr).clamp(max=1.0)
        return (variance + c_0**2 * x_0_error).clamp(min=1e-20).log()

    def _noise_error(self, level: NoiseLevel) -> Tensor:
        log_snr, error = self._on(level.alpha.device, level.alpha.dtype)
        wanted = level.log_snr.clamp(log_snr[-1], log_snr[0])
        above = torch.searchsorted(-log_snr, -wanted).clamp(1, len(log_snr) - 1)
        share = (log_snr[above - 1] - wanted) / (log_snr[above - 1] - log_snr[above])
        return torch.lerp(error[above - 1], error[above], share)

    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if device not in self._tables:
            log_snr, error = self._tables[torch.device("cpu")]
            self._tables[device] = log_snr.to(device, dtype), error.to(device, dtype)
        return self._tables[device]
