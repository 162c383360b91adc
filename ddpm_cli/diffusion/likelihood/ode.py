"""The exact likelihood of the probability-flow ODE. denoise is (x_t, t, cond): each image has its own steps, and leaves
with its conditioning when it is done."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Cond, Denoise
from ddpm_cli.diffusion.gaussian import diffuse, expand
from ddpm_cli.diffusion.likelihood.integrate import integrate
from ddpm_cli.diffusion.losses import bound_term
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.variance import FixedSmall, Variance

_LN_2 = math.log(2)


def ode_log_density(
    denoise: Denoise, x: Tensor, schedule: NoiseSchedule, probe: Tensor, *, cond: Cond = None, tolerance: float = 1e-5
) -> Tensor:
    """log p(x), (B,), in nats, of the distribution that the probability-flow ODE gives (Song et al. 2021, Eq. 39).

    With s = sigma / alpha, a = (1 + s²)^-1/2 and y = a x_t / alpha, which keeps about the size of an image whatever the
    schedule, the ODE is dy / d ln s = a² y - a D(x_t), and ln p changes by the divergence d a² - tr D', here by
    Hutchinson's estimate with probe, +-1 of x's shape. Both ends of it are at rest, so steps of their own length spend
    few passes there. alpha x is taken to lie at t = 1, whose noise is not seen; the ODE is followed to t = T (the last
    one with signal). tolerance: of a step, for y's root mean square and for ln p, in nats a dimension.
    """
    last = schedule.num_timesteps - int(schedule.zero_terminal_snr)
    ends = schedule.level(torch.tensor([1, last]))
    start, end = (-0.5 * ends.log_snr).tolist()
    size = torch.rsqrt(1 + torch.exp(-ends.log_snr))
    scale = [float(size[0]), float(size[1] / ends.alpha[1])]  # of y to x, and to x_T
    dims, exact = x[0].numel(), torch.float64 if x.device.type != "mps" else torch.float32

    def slope(log_s: Tensor, u: Tensor, rows: Tensor) -> Tensor:
        t = schedule.time_of(-2 * log_s)
        level, a = schedule.level(t), torch.rsqrt(1 + torch.exp(2 * log_s))
        with torch.enable_grad():
            y = u[:, :-1].to(x.dtype).reshape(-1, *x.shape[1:]).requires_grad_()
            at = None if cond is None else {name: value[rows] for name, value in cond.items()}
            x_0 = denoise(expand(level.alpha / a, y) * y, t, at).x_0
            (projected,) = torch.autograd.grad((x_0 * probe[rows]).sum(), y)
        trace = (projected * probe[rows]).flatten(1).to(exact).sum(1) * a  # of D by x_t / alpha = y / a
        flow = a[:, None] ** 2 * u[:, :-1] - a[:, None] * x_0.detach().flatten(1).to(exact)
        return torch.cat([flow, (a**2 - trace / dims)[:, None]], 1)

    def norm(error: Tensor) -> Tensor:
        return torch.maximum(error[:, :-1].square().mean(1).sqrt(), error[:, -1].abs())

    u = torch.cat([scale[0] * x.flatten(1).to(exact), torch.zeros(len(x), 1, device=x.device, dtype=exact)], 1)
    u = integrate(slope, u, start, end, tolerance=tolerance, norm=norm)
    scaled = u[:, :-1] / (scale[1] * schedule.prior_scale)  # standard normal if the prior is met
    log_prior = -0.5 * scaled.square().mean(1) - 0.5 * math.log(2 * math.pi) - math.log(schedule.prior_scale)
    return dims * (log_prior + u[:, -1] + math.log(scale[0] / scale[1]))


def dequantised(x_0: Tensor, u: Tensor, bins: int = 256) -> Tensor:
    """x_0 moved to a uniform place in its bin: u in [0, 1) of x_0's shape (Theis et al. 2016)."""
    return x_0 + (2 * u - 1) / (bins - 1)


@dataclass(frozen=True)
class OdeLikelihood:
    """Each image's negative log-likelihood under the probability-flow ODE, in bits per dimension."""

    total: Tensor  # (B,)
    coarse: Tensor  # (B,), with ten times the tolerance: what `total` differs from it by bounds the solver's error


def ode_likelihood(
    denoise: Denoise,
    x_0: Tensor,
    schedule: NoiseSchedule,
    *,
    u: Tensor,
    probe: Tensor,
    cond: Cond = None,
    tolerance: float = 1e-5,
    bins: int = 256,
) -> OdeLikelihood:
    """Of each image moved to a uniform place in its bins by u in [0, 1), of x_0's shape; probe: +-1.

    Uniformly dequantised, it bounds that of the discrete image from above; one draw each, unbiased. The density is that
    of t = 1, so data that clusters more closely than a bin is charged for the noise there.
    """
    x, offset = dequantised(x_0, u, bins), math.log2(2 / (bins - 1))
    found = [
        -ode_log_density(denoise, x, schedule, probe, cond=cond, tolerance=tol) / (x_0[0].numel() * _LN_2) - offset
        for tol in (tolerance, 10 * tolerance)
    ]
    return OdeLikelihood(*found)


def ode_likelihood_by_decoder(
    denoise: Denoise,
    x_0: Tensor,
    schedule: NoiseSchedule,
    *,
    noise: Tensor,
    probe: Tensor,
    cond: Cond = None,
    variance: Variance = FixedSmall(),  # noqa: B008 - a frozen value
    tolerance: float = 1e-5,
) -> OdeLikelihood:
    """As ode_likelihood, but with x_1 ~ q(x_1 | x_0) for the place in the bin: the bound of which the decoder is L_0
    and the ODE all the rest (after Zheng et al. 2023). noise: standard normal, of x_0's shape.

    It differs from the variational bound in the steps t > 1 alone, and is what that bound is to be compared with.
    """
    t = torch.ones(len(x_0), dtype=torch.long, device=x_0.device)
    x_1, dims = diffuse(x_0, noise, schedule.level(t)), x_0[0].numel()
    with torch.no_grad():
        decoder = bound_term(denoise(x_1, t, cond), x_0, x_1, t, schedule, variance)
    log_sigma = float(schedule.level(1.0).sigma.log())
    log_q = -0.5 * noise.double().square().flatten(1).sum(1) - dims * (log_sigma + 0.5 * math.log(2 * math.pi))
    found = [
        decoder + (log_q - ode_log_density(denoise, x_1, schedule, probe, cond=cond, tolerance=tol)) / (dims * _LN_2)
        for tol in (tolerance, 10 * tolerance)
    ]
    return OdeLikelihood(*found)
