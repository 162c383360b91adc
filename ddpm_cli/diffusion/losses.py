"""Training losses: (denoiser, x_0, cond, t, noise) -> LossTerms, one number an image."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Cond, Denoised, Denoiser
from ddpm_cli.diffusion.gaussian import (
    NoiseLevel,
    diffuse,
    discretised_log_likelihood,
    expand,
    kl_divergence,
    posterior,
    posterior_coefficients,
)
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.variance import FixedSmall, Variance
from ddpm_cli.diffusion.weighting import Weighting


@dataclass(frozen=True)
class LossTerms:
    """Each (B,): `total` is trained on, `mse` the weighted squared error, `vb` the bound's term at t, in bits/dim."""

    total: Tensor
    mse: Tensor | None = None
    vb: Tensor | None = None


class Loss(Protocol):
    """What every loss offers; one that derives from it states what differs from these defaults."""

    weighting: Weighting
    uses_bound: bool = False  # trains on the variational bound, so that it can teach a variance but needs every t
    trains_mean_by: Literal["weighting", "bound"] = "weighting"  # what reaches the estimate of x_0
    one_step: bool = False  # asks for x_0 out of noise in one step
    of_autoencoders: bool = False  # trains no denoiser

    def __call__(self, denoiser: Denoiser, x_0: Tensor, cond: Cond, t: Tensor, noise: Tensor) -> LossTerms: ...

    def at(self, progress: float) -> "Loss":
        """The loss of the step before which `progress`, in [0, 1), of the run's steps were made."""
        return self


def mean_flat(x: Tensor) -> Tensor:
    """Mean over all dimensions but the first."""
    return x.flatten(1).mean(1)


def variance_floor(schedule: NoiseSchedule) -> Tensor:
    """The posterior's variance at t = 2, 0-dim float64; it stands in for the zero at t = 1 (Ho et al. 2020's code)."""
    second = min(2, schedule.num_timesteps)
    return posterior_coefficients(schedule.level(float(second)), schedule.level(float(second - 1)))[2].clamp(min=1e-20)


def bound_term(
    denoised: Denoised, x_0: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule, variance: Variance
) -> Tensor:
    """The bound's term at t, (B,), in bits per dimension (DDPM Eq. 5).

    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 1; at t = 1 the negative log-likelihood of the discretised
    decoder (Eq. 13). t: (B,) integers in 1..T.
    """
    level_t, level_s, floor = schedule.level(t), schedule.level(t - 1), variance_floor(schedule)
    true_mean, _ = posterior(x_t, x_0, level_t, level_s)
    mean, _ = posterior(x_t, denoised.x_0, level_t, level_s)
    true_log_variance = expand(FixedSmall()(None, level_t, level_s, floor), x_t)
    log_variance = expand_log_variance(variance(denoised.raw, level_t, level_s, floor), x_t)
    kl = mean_flat(kl_divergence(true_mean, true_log_variance, mean, log_variance))
    decoder = -mean_flat(discretised_log_likelihood(x_0, mean, log_variance))
    return torch.where(t == 1, decoder, kl) / math.log(2)


def expand_log_variance(log_variance: Tensor, x: Tensor) -> Tensor:
    """A log-variance of t's shape made to broadcast with x; one of x's shape stays as it is."""
    return expand(log_variance, x) if log_variance.ndim <= 1 else log_variance


def prior_term(x_0: Tensor, schedule: NoiseSchedule) -> Tensor:
    """KL(q(x_T | x_0) || p(x_T)), (B,), in bits per dimension: the bound's term that nothing is trained on."""
    level = schedule.level(float(schedule.num_timesteps))
    prior_log_variance = torch.as_tensor(2 * math.log(schedule.prior_scale), dtype=torch.float64)
    mean = level.alpha * x_0
    kl = kl_divergence(mean, 2 * level.sigma.log(), torch.zeros_like(mean), prior_log_variance)
    return mean_flat(kl) / math.log(2)


def _weighted_error(weighting: Weighting, level: NoiseLevel, x_0: Tensor, estimate: Tensor) -> Tensor:
    return weighting(level).to(x_0.dtype) * mean_flat((estimate - x_0) ** 2)


def huber(error: Tensor, delta: float) -> Tensor:
    """error² up to |error| = delta, from there on its tangent: elementwise."""
    size = error.abs()
    return torch.where(size <= delta, error**2, delta * (2 * size - delta))


def _trained_error(
    weighting: Weighting, huber_delta: float | None, mse: Tensor, level: NoiseLevel, x_0: Tensor, estimate: Tensor
) -> Tensor:
    """What the denoising part is trained on, (B,): the weighted error, penalised and balanced as the loss says."""
    if huber_delta is not None:
        scale = weighting(level).sqrt()
        mse = mean_flat(huber(expand(scale, x_0) * (estimate - x_0), huber_delta))
    return weighting.balance(mse, level)


@dataclass(frozen=True)
class Denoising(Loss):
    """weight(level) |x_0 - x_0_hat|², averaged over dimensions; with the epsilon weighting DDPM's L_simple (Eq. 14).

    huber_delta: from that size of sqrt(weight) error on, the square goes on as a straight line; None: never.
    """

    weighting: Weighting
    huber_delta: float | None = None

    def __call__(self, denoiser: Denoiser, x_0: Tensor, cond: Cond, t: Tensor, noise: Tensor) -> LossTerms:
        level = denoiser.schedule.level(t)
        denoised = denoiser(diffuse(x_0, noise, level), t, cond)
        mse = _weighted_error(self.weighting, level, x_0, denoised.x_0)
        return LossTerms(_trained_error(self.weighting, self.huber_delta, mse, level, x_0, denoised.x_0), mse=mse)


@dataclass(frozen=True)
class VariationalBound(Loss):
    """T times the bound's term at t: an unbiased estimate of the bound without its constant L_T, in bits/dim."""

    weighting: Weighting  # not trained on: the bound has its own weights; reported as mse

    uses_bound = True
    trains_mean_by = "bound"

    def __call__(self, denoiser: Denoiser, x_0: Tensor, cond: Cond, t: Tensor, noise: Tensor) -> LossTerms:
        level = denoiser.schedule.level(t)
        x_t = diffuse(x_0, noise, level)
        denoised = denoiser(x_t, t, cond)
        vb = bound_term(denoised, x_0, x_t, t, denoiser.schedule, denoiser.variance)
        with torch.no_grad():
            mse = _weighted_error(self.weighting, level, x_0, denoised.x_0)
        return LossTerms(denoiser.schedule.num_timesteps * vb, mse=mse, vb=vb)


@dataclass(frozen=True)
class Hybrid(Loss):
    """Denoising plus bound_weight times the bound, its gradient for the variance alone (Improved DDPM, Eq. 16)."""

    weighting: Weighting
    bound_weight: float = 0.001
    huber_delta: float | None = None

    uses_bound = True

    def __call__(self, denoiser: Denoiser, x_0: Tensor, cond: Cond, t: Tensor, noise: Tensor) -> LossTerms:
        level = denoiser.schedule.level(t)
        x_t = diffuse(x_0, noise, level)
        denoised = denoiser(x_t, t, cond)
        mse = _weighted_error(self.weighting, level, x_0, denoised.x_0)
        frozen_mean = Denoised(denoised.x_0.detach(), denoised.raw)
        vb = bound_term(frozen_mean, x_0, x_t, t, denoiser.schedule, denoiser.variance)
        trained = _trained_error(self.weighting, self.huber_delta, mse, level, x_0, denoised.x_0)
        # One t of T is drawn, so T vb estimates the bound; without the factor it would be T times too weak.
        return LossTerms(trained + self.bound_weight * denoiser.schedule.num_timesteps * vb, mse=mse, vb=vb)


@dataclass(frozen=True)
class Autoencoding(Loss):
    """|x_0 - D(E(x_0))|² + kl_weight KL(q(z | x_0) || N(0, 1)), both divided by the dimensions of x_0: the first stage
    of latent diffusion (Rombach et al. 2022, Eq. 25, without perceptual loss and discriminator).

    No noise but that of the latents: the network is told of it, and t and the weighting have no part. Its second
    output, for which variance=learned stands, is the divergence. huber_delta: as in Denoising.
    """

    weighting: Weighting
    kl_weight: float = 1e-6
    huber_delta: float | None = None

    uses_bound = True  # the divergence is a part of the bound, and teaches the second output
    of_autoencoders = True

    def __call__(self, denoiser: Denoiser, x_0: Tensor, cond: Cond, t: Tensor, noise: Tensor) -> LossTerms:
        denoised = denoiser(x_0, t, {"noise": noise})
        assert denoised.raw is not None
        error = denoised.x_0 - x_0
        mse = mean_flat(error**2)
        distance = mse if self.huber_delta is None else mean_flat(huber(error, self.huber_delta))
        return LossTerms(distance + self.kl_weight * mean_flat(denoised.raw), mse=mse)
