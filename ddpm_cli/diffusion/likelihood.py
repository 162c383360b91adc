"""How probable a model finds images, in bits per dimension: the variational bound term by term, an estimate of it from
few terms, and the exact likelihood of the probability-flow ODE.

denoise(x_t, t) has its conditioning bound; x_0 holds the 256 values of an 8-bit image, in [-1, 1].
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Denoised
from ddpm_cli.diffusion.gaussian import diffuse
from ddpm_cli.diffusion.losses import bound_term, prior_term
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.variance import FixedSmall

BoundDenoise = Callable[[Tensor, Tensor], Denoised]
_LN_2 = math.log(2)


@dataclass(frozen=True)
class Bound:
    """The bound of each image, (B,), and its parts: prior L_T (B,) and the terms of t = 1..T, (B, T), all in bits per
    dimension."""

    total: Tensor
    prior: Tensor
    terms: Tensor


def variational_bound(
    denoise: BoundDenoise, x_0: Tensor, schedule: NoiseSchedule, variance, noise: Callable[[int], Tensor]
) -> Bound:
    """The full bound L_T + sum of L_{t-1} + L_0 (DDPM Eq. 5) with one draw of noise(t) a term: T passes of the
    network."""

    def terms() -> Iterator[Tensor]:
        for step in range(1, schedule.num_timesteps + 1):
            t = torch.full((len(x_0),), step, device=x_0.device)
            x_t = diffuse(x_0, noise(step), schedule.level(t))
            yield bound_term(denoise(x_t, t), x_0, x_t, t, schedule, variance)

    each, prior = torch.stack(list(terms()), dim=1), prior_term(x_0, schedule)
    return Bound(prior + each.sum(1), prior, each)


@dataclass(frozen=True)
class BoundEstimate:
    """An unbiased estimate of each image's bound, (B,), and of that estimate's variance, (B,); bits per dimension."""

    total: Tensor
    variance: Tensor

    @property
    def mean(self) -> float:
        """The mean bound of these images."""
        return float(self.total.mean())

    @property
    def standard_error(self) -> float:
        """Of `mean`, as an estimate of what the full sum over t would give for the same images."""
        return float(self.variance.sum().sqrt()) / len(self.total)


def strata(num_timesteps: int, count: int) -> list[range]:
    """1..T cut into at most `count` ranges, of about equal length in log t: the bound's terms fall like 1 / t, so each
    range holds about as much of it. The first ranges are single times."""
    edges = [1]
    for left in range(min(count, num_timesteps), 0, -1):
        ratio = (num_timesteps + 1) / edges[-1]
        edges.append(max(edges[-1] + 1, round(edges[-1] * ratio ** (1 / left))))
    edges = [edge for edge in edges if edge < num_timesteps + 1] + [num_timesteps + 1]
    return [range(low, high) for low, high in itertools.pairwise(edges)]


def estimated_bound(
    denoise: BoundDenoise,
    x_0: Tensor,
    schedule: NoiseSchedule,
    variance,
    *,
    generator: torch.Generator,
    num_strata: int = 32,
    replicates: int = 2,
) -> BoundEstimate:
    """The bound from num_strata x replicates passes instead of T: in each stratum one t an image, drawn uniformly,
    stands for all. generator: on x_0's device. replicates: independent estimates, at least 2, whose spread gives the
    variance."""
    if replicates < 2:
        raise ValueError(f"replicates must be at least 2 to give a standard error, got {replicates}")
    totals = []
    for _ in range(replicates):
        total = prior_term(x_0, schedule)
        for stratum in strata(schedule.num_timesteps, num_strata):
            draw = torch.randint(stratum.start, stratum.stop, (len(x_0),), generator=generator, device=generator.device)
            noise = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype, device=generator.device)
            x_t = diffuse(x_0, noise, schedule.level(draw))
            total = total + len(stratum) * bound_term(denoise(x_t, draw), x_0, x_t, draw, schedule, variance)
        totals.append(total)
    each = torch.stack(totals)
    return BoundEstimate(each.mean(0), each.var(0) / replicates)


def ode_log_density(
    denoise: BoundDenoise, x: Tensor, schedule: NoiseSchedule, probe: Tensor, *, num_steps: int = 100
) -> Tensor:
    """log p(x), (B,), in nats, of the distribution that the probability-flow ODE gives (Song et al. 2021, Eq. 39).

    With z = x_t / alpha and s = sigma / alpha the ODE is dz / d ln s = z - D(z), and ln p changes by the divergence
    d - tr D'(z), here by Hutchinson's estimate with probe, +-1 of x's shape. x is taken to lie at t = 1, and the ODE is
    followed to t = T (the last one with signal) by num_steps Runge-Kutta steps of order 4 in ln s: 4 num_steps passes.
    """
    last = schedule.num_timesteps - int(schedule.zero_terminal_snr)
    ends = schedule.level(torch.tensor([1, last]))
    log_s = -0.5 * ends.log_snr
    h = float(log_s[1] - log_s[0]) / num_steps
    z, log_ratio = x / float(ends.alpha[0]), torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for i in range(num_steps):
        at = float(log_s[0]) + i * h
        k_1, d_1 = _flow(denoise, z, at, schedule, probe)
        k_2, d_2 = _flow(denoise, z + h / 2 * k_1, at + h / 2, schedule, probe)
        k_3, d_3 = _flow(denoise, z + h / 2 * k_2, at + h / 2, schedule, probe)
        k_4, d_4 = _flow(denoise, z + h * k_3, at + h, schedule, probe)
        z = z + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
        log_ratio = log_ratio + h / 6 * (d_1 + 2 * d_2 + 2 * d_3 + d_4)
    alpha, dims = float(ends.alpha[1]), x[0].numel()
    scaled = (alpha / schedule.prior_scale * z.double()).flatten(1)  # standard normal if the prior is met
    log_prior = -0.5 * (scaled**2).sum(1) + dims * (
        math.log(alpha / schedule.prior_scale) - 0.5 * math.log(2 * math.pi)
    )
    return log_prior + log_ratio - dims * math.log(float(ends.alpha[0]))


def _flow(
    denoise: BoundDenoise, z: Tensor, log_s: float, schedule: NoiseSchedule, probe: Tensor
) -> tuple[Tensor, Tensor]:
    """dz / d ln s, of z's shape, and its divergence, (B,) float64."""
    t = schedule.time_of(torch.tensor(-2 * log_s, dtype=torch.float64))
    alpha = float(schedule.level(t).alpha)
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        x_0 = denoise(alpha * z, t).x_0
        (projected,) = torch.autograd.grad((x_0 * probe).sum(), z)
    trace = (projected * probe).flatten(1).double().sum(1)
    return (z - x_0).detach(), z[0].numel() - trace


def dequantised(x_0: Tensor, u: Tensor, bins: int = 256) -> Tensor:
    """x_0 moved to a uniform place in its bin: u in [0, 1) of x_0's shape (Theis et al. 2016)."""
    return x_0 + (2 * u - 1) / (bins - 1)


def ode_likelihood(
    denoise: BoundDenoise,
    x_0: Tensor,
    schedule: NoiseSchedule,
    *,
    generator: torch.Generator,
    num_steps: int = 100,
    bins: int = 256,
) -> Tensor:
    """Each image's negative log-likelihood under the probability-flow ODE, (B,), in bits per dimension.

    Uniformly dequantised, it bounds that of the discrete image from above; one draw each, unbiased. The density is that
    of t = 1, so data that clusters more closely than a bin is charged for the noise there.
    """
    u = torch.rand(x_0.shape, generator=generator, dtype=x_0.dtype, device=generator.device)
    coin = torch.randint(0, 2, x_0.shape, generator=generator, device=generator.device)
    log_density = ode_log_density(
        denoise, dequantised(x_0, u, bins), schedule, (2 * coin - 1).to(x_0.dtype), num_steps=num_steps
    )
    return -log_density / (x_0[0].numel() * _LN_2) - math.log2(2 / (bins - 1))


def ode_likelihood_by_decoder(
    denoise: BoundDenoise,
    x_0: Tensor,
    schedule: NoiseSchedule,
    *,
    generator: torch.Generator,
    variance=FixedSmall(),  # noqa: B008 - a frozen value
    num_steps: int = 100,
) -> Tensor:
    """As ode_likelihood, but with x_1 ~ q(x_1 | x_0) for the place in the bin: the bound of which the decoder is L_0
    and the ODE all the rest (after Zheng et al. 2023). (B,), bits per dimension.

    It differs from the variational bound in the steps t > 1 alone, and is what that bound is to be compared with.
    """
    t = torch.ones(len(x_0), dtype=torch.long, device=x_0.device)
    noise = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype, device=generator.device)
    x_1, dims = diffuse(x_0, noise, schedule.level(t)), x_0[0].numel()
    with torch.no_grad():
        decoder = bound_term(denoise(x_1, t), x_0, x_1, t, schedule, variance)
    coin = torch.randint(0, 2, x_0.shape, generator=generator, device=generator.device)
    log_p = ode_log_density(denoise, x_1, schedule, (2 * coin - 1).to(x_0.dtype), num_steps=num_steps)
    log_sigma = float(schedule.level(1.0).sigma.log())
    log_q = -0.5 * (noise.double() ** 2).flatten(1).sum(1) - dims * (log_sigma + 0.5 * math.log(2 * math.pi))
    return decoder + (log_q - log_p) / (dims * _LN_2)
