"""The Gaussian facts of diffusion: what x_t, x_s and x_0 say about each other, given the noise levels (s < t)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseLevel:
    """The pair (alpha, sigma) of x_t = alpha x_0 + sigma noise.

    alpha is DDPM's sqrt(alpha_bar) and sigma its sqrt(1 - alpha_bar); EDM has alpha = 1. Both have t's shape, () or
    (B,). A level of shape () in float64 on the CPU acts as a plain number: it neither promotes x's dtype nor waits for
    a GPU.
    """

    alpha: Tensor
    sigma: Tensor

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio alpha² / sigma²; infinite at t = 0, 0 at zero terminal SNR."""
        return (self.alpha / self.sigma) ** 2

    @property
    def log_snr(self) -> Tensor:
        return 2 * (self.alpha.log() - self.sigma.log())


def expand(value: Tensor, x: Tensor) -> Tensor:
    """`value` of shape (B,) as x's dtype and (B, 1, ..., 1) of x's rank; a 0-dim value stays as it is."""
    return value if value.ndim == 0 else value.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def diffuse(x_0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
    """x_t ~ q(x_t | x_0) for standard normal noise of x_0's shape (DDPM Eq. 4)."""
    return expand(level.alpha, x_0) * x_0 + expand(level.sigma, x_0) * noise


def transition(level_t: NoiseLevel, level_s: NoiseLevel) -> tuple[Tensor, Tensor]:
    """(alpha_ts, variance) of q(x_t | x_s) = N(alpha_ts x_s, variance); at s = t - 1 the variance is DDPM's beta_t."""
    alpha_ts = level_t.alpha / level_s.alpha
    return alpha_ts, level_t.sigma**2 - (alpha_ts * level_s.sigma) ** 2


def step_forward(x_s: Tensor, noise: Tensor, level_t: NoiseLevel, level_s: NoiseLevel) -> Tensor:
    """x_t ~ q(x_t | x_s): one step of the forward process (DDPM Eq. 2, there with s = t - 1)."""
    alpha_ts, variance = transition(level_t, level_s)
    return expand(alpha_ts, x_s) * x_s + expand(variance.sqrt(), x_s) * noise


def infer_noise(x_t: Tensor, x_0: Tensor, level: NoiseLevel) -> Tensor:
    """The noise that takes x_0 to x_t; the level must not be t = 0."""
    return (x_t - expand(level.alpha, x_t) * x_0) / expand(level.sigma, x_t)


def posterior_coefficients(level_t: NoiseLevel, level_s: NoiseLevel) -> tuple[Tensor, Tensor, Tensor]:
    """(c_0, c_t, variance) of q(x_s | x_t, x_0) = N(c_0 x_0 + c_t x_t, variance) (DDPM Eq. 7); at s = 0: (1, 0, 0)."""
    alpha_ts, variance_ts = transition(level_t, level_s)
    variance_t, variance_s = level_t.sigma**2, level_s.sigma**2
    return (
        level_s.alpha * variance_ts / variance_t,
        alpha_ts * variance_s / variance_t,
        variance_ts * variance_s / variance_t,
    )


def posterior(x_t: Tensor, x_0: Tensor, level_t: NoiseLevel, level_s: NoiseLevel) -> tuple[Tensor, Tensor]:
    """Mean (x_t's shape) and variance (t's, float64) of q(x_s | x_t, x_0), any s < t (DDPM Eq. 6-7 for s = t - 1)."""
    c_0, c_t, variance = posterior_coefficients(level_t, level_s)
    return expand(c_0, x_t) * x_0 + expand(c_t, x_t) * x_t, variance


def kl_divergence(mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    """KL(N(mean_1, e^log_variance_1) || N(mean_2, e^log_variance_2)), elementwise, in nats."""
    ratio = log_variance_1 - log_variance_2
    return 0.5 * (ratio.exp() - 1 - ratio + (mean_1 - mean_2) ** 2 * torch.exp(-log_variance_2))


def discretised_log_likelihood(x_0: Tensor, mean: Tensor, log_variance: Tensor, bins: int = 256) -> Tensor:
    """log probability, in nats, of the bin of N(mean, e^log_variance) that x_0 lies in (DDPM Eq. 13), elementwise.

    x_0 takes `bins` equally spaced values in [-1, 1]; the outermost bins are open-ended. Uses the exact normal cdf
    (the DDPM code has a tanh approximation, up to 2e-3 off). Differences of cdfs below 1e-12 count as 1e-12.
    """
    half = 1 / (bins - 1)
    scale = torch.exp(-0.5 * log_variance) / math.sqrt(2)
    upper, lower = (x_0 - mean + half) * scale, (x_0 - mean - half) * scale
    last, first = x_0 > 1 - half / 2, x_0 < -1 + half / 2
    # erf's difference cancels in the upper tail; by symmetry both ends are taken where erf is accurate.
    flip = lower > 0
    upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    # An infinite end would give the gradient 0 * inf; so the cdf beyond the outermost bins is put in as a number.
    below_upper = torch.where(torch.where(flip, first, last), 2.0, torch.special.erfc(-upper))
    below_lower = torch.where(torch.where(flip, last, first), 0.0, torch.special.erfc(-lower))
    probability = 0.5 * (below_upper - below_lower)
    return probability.clamp(min=1e-12).log()
