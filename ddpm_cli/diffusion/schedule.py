"""Noise schedules: how alpha and sigma go from the clean image (t = 0) to noise (t = T)."""

import math

import torch
from torch import Tensor

from ddpm_cli.diffusion.gaussian import NoiseLevel
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule, straight, variance_exploding, variance_preserving
from ddpm_cli.diffusion.spacing import MOST_SIGMA

__all__ = ["NoiseSchedule", "variance_exploding", "variance_preserving"]


def from_betas(betas: Tensor, knobs: str = "schedule.beta_start, schedule.beta_end") -> NoiseSchedule:
    """The schedule of forward variances beta_1..beta_T, each in (0, 1) (DDPM Eq. 2); knobs: what they come from."""
    if not ((betas > 0) & (betas < 1)).all():
        raise ValueError(
            f"every beta must lie in (0, 1), got {betas.min():g}..{betas.max():g}; "
            f"change {knobs} or schedule.num_timesteps"
        )
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas.double(), 0)])
    return NoiseSchedule(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


def from_alpha_bar(alpha_bar: Tensor, max_beta: float = 0.999) -> NoiseSchedule:
    """The schedule of alpha_bar at t = 0..T, falling from 1, no beta above max_beta (Improved DDPM, Section 3.2)."""
    return from_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta))


def from_log_snr(log_snr: Tensor, spacing: str = "trailing") -> NoiseSchedule:
    """The variance-preserving schedule of falling log-SNRs at t = 1..T."""
    level = variance_preserving(log_snr.double())
    clean = NoiseLevel(torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    alpha, sigma = (torch.cat(pair) for pair in ((clean.alpha, level.alpha), (clean.sigma, level.sigma)))
    return NoiseSchedule(alpha, sigma, spacing=spacing)


def _rise(num_timesteps: int) -> Tensor:
    """t / T for t = 0..T."""
    return torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps


def linear(num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
    """Betas rise linearly (Ho et al. 2020); they are given for 1000 steps and rescaled by 1000 / num_timesteps."""
    scale = 1000 / num_timesteps
    return from_betas(torch.linspace(scale * beta_start, scale * beta_end, num_timesteps, dtype=torch.float64))


def scaled_linear(num_timesteps: int = 1000, beta_start: float = 8.5e-4, beta_end: float = 0.012) -> NoiseSchedule:
    """Roots of beta rise linearly: DDIM's "quad" (Song, Meng and Ermon 2020), with other ends the schedule of latent
    diffusion (Rombach et al. 2022). Given for 1000 steps and rescaled."""
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64)
    return from_betas(1000 / num_timesteps * roots**2)


def constant(num_timesteps: int = 1000, beta: float = 0.01) -> NoiseSchedule:
    """Every step adds the same noise (an ablation of Ho et al. 2020); beta is given for 1000 steps and rescaled."""
    return from_betas(torch.full((num_timesteps,), 1000 / num_timesteps * beta, dtype=torch.float64), "schedule.beta")


def cosine(num_timesteps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
    """alpha_bar falls as cos² (Nichol and Dhariwal 2021, Eq. 17)."""
    return from_alpha_bar(torch.cos((_rise(num_timesteps) + s) / (1 + s) * (math.pi / 2)) ** 2, max_beta)


def sigmoid(
    num_timesteps: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
) -> NoiseSchedule:
    """alpha_bar falls as a sigmoid from start to end, stretched to 1..0; large tau: a line (Jabri et al. 2022)."""
    if not start < end:
        raise ValueError(f"schedule.start must lie below schedule.end, got {start} and {end}")
    fall = torch.sigmoid(-(start + _rise(num_timesteps) * (end - start)) / tau)
    return from_alpha_bar((fall - fall[-1]) / (fall[0] - fall[-1]), max_beta)


def laplace(
    num_timesteps: int = 1000,
    mean: float = 0.0,
    scale: float = 0.5,
    log_snr_max: float = 10.0,
    log_snr_min: float = -10.0,
) -> NoiseSchedule:
    """The log-SNR of a uniform t is Laplace-distributed: most times lie where image and noise balance (Hang et al.
    2024). The law is cut off at log_snr_max and log_snr_min, which t = 1 and T have.

    A law to train by, not to walk by: t = 2 is a far noisier image than t = 1, and a walk in equal steps of t loses all
    detail that lies between. Samplers walk in equal steps of log-SNR instead.
    """
    if not log_snr_min < log_snr_max:
        raise ValueError(f"schedule.log_snr_min must lie below log_snr_max, got {log_snr_min} and {log_snr_max}")
    law = torch.distributions.Laplace(torch.tensor(mean).double(), torch.tensor(scale).double())
    ends = torch.tensor([log_snr_max, log_snr_min], dtype=torch.float64)
    above, below = law.cdf(ends).tolist()
    log_snr = law.icdf(torch.linspace(above, below, num_timesteps, dtype=torch.float64))
    return from_log_snr(log_snr.clamp(log_snr_min, log_snr_max), spacing="log_snr")


def cosine_log_snr(
    num_timesteps: int = 1000,
    log_snr_max: float = 15.0,
    log_snr_min: float = -15.0,
    image_size: int | list[int] = 64,
    noise_size: int = 64,
) -> NoiseSchedule:
    """The cosine schedule between two log-SNRs, shifted for the resolution (Hoogeboom et al. 2023): images of
    image_size pixels, averaged down to noise_size, lose their signal as the cosine schedule has it."""
    if not log_snr_min < log_snr_max:
        raise ValueError(f"schedule.log_snr_min must lie below log_snr_max, got {log_snr_min} and {log_snr_max}")
    first, last = (math.atan(math.exp(-0.5 * log_snr)) for log_snr in (log_snr_max, log_snr_min))
    log_snr = -2 * torch.tan(torch.linspace(first, last, num_timesteps, dtype=torch.float64)).log()
    sides = image_size if isinstance(image_size, list) else [image_size, image_size]
    return from_log_snr(log_snr + math.log(noise_size**2 / math.prod(sides)))


TABLE_KINDS = ("alpha_bar", "beta", "log_snr")


def table(values: list[float], holds: str = "alpha_bar") -> NoiseSchedule:
    """The schedule of given numbers for t = 1..T: alpha_bar, beta or the log-SNR."""
    numbers = torch.tensor(values, dtype=torch.float64)
    if holds == "log_snr":
        return from_log_snr(numbers)
    if holds == "beta":
        return from_betas(numbers, "schedule.path")
    if holds != "alpha_bar":
        raise ValueError(f"schedule.holds must be one of {', '.join(TABLE_KINDS)}, got {holds}")
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), numbers])
    if not ((numbers >= 0) & (numbers < 1)).all():
        raise ValueError(
            f"alpha_bar must lie in [0, 1), got {numbers.min():g}..{numbers.max():g}; or set schedule.holds"
        )
    rises = (numbers.diff() >= 0).nonzero().flatten().tolist()
    if rises and len(rises) == len(numbers) - 1 and numbers[0] > 0:
        raise ValueError(
            f"alpha_bar must fall, and these numbers rise from {numbers[0]:g} to {numbers[-1]:g}, as betas do; "
            "set schedule.holds=beta"
        )
    if rises:
        t = rises[0] + 1
        raise ValueError(
            f"alpha_bar must fall from t to t, got {values[t - 1]:g} at t = {t} and {values[t]:g} at t = {t + 1}; "
            "correct the file, or set schedule.holds"
        )
    return NoiseSchedule(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


def zero_terminal_snr(noise_schedule: NoiseSchedule) -> NoiseSchedule:
    """A variance-preserving schedule stretched so that x_T is noise, its first level kept (Lin et al. 2023, Alg. 1)."""
    alpha = noise_schedule.alpha
    if noise_schedule.num_timesteps < 2:
        raise ValueError("schedule.zero_terminal_snr=true needs schedule.num_timesteps of at least 2")
    stretched = (alpha - alpha[-1]) * (alpha[1] / (alpha[1] - alpha[-1]))
    alpha = torch.cat([alpha[:1], stretched[1:]])
    return NoiseSchedule(alpha, (1 - alpha**2).sqrt())


def rescaled_time(noise_schedule: NoiseSchedule) -> NoiseSchedule:
    """The same levels, but the network embeds 1000 (t - 1) / T (`rescale_timesteps` in the code of iDDPM)."""
    factor = 1000 / noise_schedule.num_timesteps
    return noise_schedule.with_network_time(lambda t, level: (t - 1) * factor)


def edm(
    num_timesteps: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5
) -> NoiseSchedule:
    """alpha = 1, ln sigma linear in t from sigma_min at t = 1 to sigma_max at T; real t makes it continuous (Karras et
    al. 2022). The network embeds ln(sigma) / 4. For data of another standard deviation than 0.5 both ends are that much
    smaller or larger."""
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"schedule.sigma_min must lie in (0, sigma_max), got {sigma_min} and {sigma_max}")
    sigma_min, sigma_max = (sigma * sigma_data / 0.5 for sigma in (sigma_min, sigma_max))
    log_sigma = torch.linspace(math.log(sigma_min), math.log(sigma_max), num_timesteps, dtype=torch.float64)
    sigma = torch.cat([torch.zeros(1, dtype=torch.float64), log_sigma.exp()])
    return NoiseSchedule(
        torch.ones_like(sigma),
        sigma,
        level_of=variance_exploding,
        network_time=lambda t, level: level.sigma.log() / 4,
        prior_scale=sigma_max,
        spacing="karras",
        continuous=True,
    )


def rectified_flow(num_timesteps: int = 1000, shift: float = 1.0) -> NoiseSchedule:
    """alpha = 1 - sigma, sigma linear in t: straight paths between image and noise (Liu et al. 2022; Lipman et al.
    2022). Real t makes it continuous; the network embeds 1000 sigma.

    shift: multiplies sigma / alpha at every t, for images of more pixels (Esser et al. 2024, Eq. 23, alpha
    there). It ends a little before pure noise, at sigma / alpha = 160, so that every sampler can begin there.
    """
    end = MOST_SIGMA / shift / (1 + MOST_SIGMA / shift)
    share = end * _rise(num_timesteps)
    ratio = shift * share / (1 - share)
    sigma = ratio / (1 + ratio)
    return NoiseSchedule(
        1 - sigma,
        sigma,
        level_of=straight,
        network_time=lambda t, level: 1000 * level.sigma,
        prior_scale=float(sigma[-1]),
        continuous=True,
    )
