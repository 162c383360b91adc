"""Samplers that look back: they use the estimates of earlier steps, at one evaluation a step."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.diffusion.samplers.base import Grid, GridSampler, SamplerStep, StepNoise, combined
from ddpm_cli.diffusion.schedule import NoiseSchedule

# A step that grows by more than this is of first order: the difference of the two estimates before it, extrapolated
# that far, errs more than it helps (docs/samplers.md). leading and linspace end with such a step at low noise.
_MOST_GROWTH = 2.0


def _log_steps(grid: Grid) -> Tensor:
    """h: what lambda = ln(alpha/sigma) gains at each step; infinite out of zero SNR and into the clean image."""
    return (grid.end.log_snr - grid.start.log_snr) / 2


def _orders(h: Tensor, highest: int) -> list[int]:
    """The order of each step: the number of estimates it may use, none from before an infinite step or a jump."""
    orders, usable = [], 0
    for i, step in enumerate(h.tolist()):
        usable = 1 if i == 0 or step > _MOST_GROWTH * float(h[i - 1]) else usable + 1
        orders.append(1 if math.isinf(step) else min(highest, usable))
        usable = 0 if math.isinf(step) else usable
    return orders


@dataclass(frozen=True)
class DPMSolverPP(GridSampler):
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2): second order from the last two estimates; its first step and a
    last one into the clean image are DDIM's. order 3: DPM-Solver++(3M), as k-diffusion has it with eta = 0: three
    estimates, a third of the error; begun by steps of lower order, it is of second order as well."""

    num_steps: int | None = 20
    order: int = 2

    favours = "log_snr_by_steps"
    deterministic = True

    def __call__(self, denoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise) -> Iterator[SamplerStep]:
        return _dpmpp(denoise, x_T, self.grid(schedule), self.order, 0.0, noise)


@dataclass(frozen=True)
class DPMSolverPPSDE(GridSampler):
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, appendix): DPM-Solver++(2M) with new noise at every step; order 3: (3M).

    eta scales the noise: 1 is the paper's reverse SDE, 0 the ODE of DPMSolverPP.
    """

    num_steps: int | None = 50
    eta: float = 1.0
    order: int = 2

    favours = "log_snr_by_steps"

    @property
    def deterministic(self) -> bool:
        return self.eta == 0

    def __call__(self, denoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise) -> Iterator[SamplerStep]:
        return _dpmpp(denoise, x_T, self.grid(schedule), self.order, self.eta, noise)


def _dpmpp(denoise, x_T: Tensor, grid: Grid, order: int, eta: float, noise: StepNoise) -> Iterator[SamplerStep]:
    if order not in (2, 3):
        raise ValueError(f"sampler.order must be 2 or 3, got {order}")
    h = _log_steps(grid)
    lost = eta * h if eta else torch.zeros_like(h)  # in lambda, made good by noise
    keep = (grid.end.sigma / grid.start.sigma * (-lost).exp()).tolist()
    gain = (-grid.end.alpha * torch.expm1(-h - lost)).tolist()
    std = (grid.end.sigma * (-torch.expm1(-2 * lost)).sqrt()).tolist()
    weigh = _weights_2m if order == 2 else _weights_3m
    steps, alpha = (h + lost).tolist(), grid.end.alpha.tolist()
    weights = [
        weigh(h[: i + 1].tolist(), steps[i], alpha[i], gain[i], usable) for i, usable in enumerate(_orders(h, order))
    ]
    return _look_back(denoise, x_T, grid, (keep, weights, std), noise)


def _weights_2m(h: list[float], step: float, alpha: float, gain: float, order: int) -> list[float]:
    """Of the estimates, newest first: gain ((1 + c) x_0 - c previous), c = h_i / (2 h_{i-1})."""
    if order == 1:
        return [gain]
    c = h[-1] / (2 * h[-2])
    return [gain * (1 + c), -gain * c]


def _weights_3m(h: list[float], step: float, alpha: float, gain: float, order: int) -> list[float]:
    """Of the estimates, newest first: gain x_0 + alpha (phi_2 d_1 - phi_3 d_2), d_1 and d_2 being the first and second
    divided differences of the estimates, in units of h_i (k-diffusion, dpmpp_3m_sde)."""
    if order == 1:
        return [gain]
    phi_2 = math.expm1(-step) / step + 1
    r_0 = h[-2] / h[-1]
    if order == 2:
        return [gain + alpha * phi_2 / r_0, -alpha * phi_2 / r_0]
    phi_3 = phi_2 / step - 0.5
    r_1 = h[-3] / h[-1]
    newer, older = 1 / r_0, 1 / r_1  # d_newer = (x_0 - previous) newer, d_older = (previous - the one before) older
    first, second = alpha * phi_2, -alpha * phi_3 / (r_0 + r_1)
    of_newer, of_older = first * (1 + r_0 / (r_0 + r_1)) + second, -first * r_0 / (r_0 + r_1) - second
    return [gain + of_newer * newer, of_older * older - of_newer * newer, -of_older * older]


def _look_back(denoise, x: Tensor, grid: Grid, weights, noise: StepNoise) -> Iterator[SamplerStep]:
    keep, of_estimates, std = weights
    history: list[Tensor] = []  # newest first
    for i, (t, s) in enumerate(zip(grid.times, grid.ends, strict=False)):
        history = [denoise(x, t).x_0, *history[:2]]
        x = combined(x, keep[i], *zip(of_estimates[i], history, strict=False))
        if std[i] > 0:
            x.add_(noise(i), alpha=std[i])
        yield SamplerStep(i, s, x, history[0])


@dataclass(frozen=True)
class GradientEstimation(GridSampler):
    """Euler's steps along an extrapolated noise estimate, gamma noise + (1 - gamma) previous noise (Permenter and Yuan
    2023, Algorithm 1, gamma = 2); gamma = 1 is DDIM. The first step and one into the clean image are DDIM's.

    It is of first order at most: gamma = 1.5 would make it of second, where steps are alike and many. 2 is the better
    choice at ten steps, which it is for.
    """

    num_steps: int | None = 20
    gamma: float = 2.0

    favours = "log_snr_by_steps"
    deterministic = True

    def __call__(self, denoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise) -> Iterator[SamplerStep]:
        grid = self.grid(schedule)
        down = grid.end.sigma - grid.end.alpha * grid.start.sigma / grid.start.alpha  # alpha' (sigma' - sigma), of EDM
        extra = [0.0, *torch.where(grid.end.sigma > 0, (self.gamma - 1) * down, 0.0)[1:].tolist()]
        return _along_noise(denoise, x_T, grid, extra)


def _along_noise(denoise, x: Tensor, grid: Grid, extra: list[float]) -> Iterator[SamplerStep]:
    keep, gain = (weights.tolist() for weights in grid.first_order)
    alpha, sigma = grid.start.alpha.tolist(), grid.start.sigma.tolist()
    previous = None
    for i, (t, s) in enumerate(zip(grid.times, grid.ends, strict=False)):
        x_0 = denoise(x, t).x_0
        estimate = combined(x, 1 / sigma[i], (-alpha[i] / sigma[i], x_0))  # of the noise
        x = combined(x, keep[i], (gain[i], x_0))
        if extra[i] and previous is not None:
            x.add_(estimate, alpha=extra[i]).sub_(previous, alpha=extra[i])
        previous = estimate
        yield SamplerStep(i, s, x, x_0)


@dataclass(frozen=True)
class UniPC(GridSampler):
    """UniPC-p with B_2(h) = e^h - 1, predicting x_0 (Zhao et al. 2023, Algorithms 1-2): a multistep predictor, and a
    corrector that uses the next step's evaluation, so that one evaluation a step does for both.

    order p: 1..3; lower where the history is short and, on grids that end at the clean image, in the last steps.
    """

    num_steps: int | None = 20
    order: int = 2

    favours = "log_snr_by_steps"
    deterministic = True

    def __call__(self, denoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise) -> Iterator[SamplerStep]:
        if not 1 <= self.order <= 3:
            raise ValueError(f"sampler.order must lie in 1..3, got {self.order}")
        grid = self.grid(schedule)
        h, alpha = _log_steps(grid), grid.end.alpha.tolist()
        left = range(len(h), 0, -1) if h[-1].isinf() else [self.order] * len(h)  # into the clean image: lower at last
        orders = [min(order, most) for order, most in zip(_orders(h, self.order), left, strict=True)]
        weights = [_unipc_weights(h, i, order, alpha[i]) for i, order in enumerate(orders)]
        return _unipc(denoise, x_T, grid, weights, self.order)


def _unipc_weights(h: Tensor, i: int, order: int, alpha: float) -> tuple[list[float], list[float]]:
    """Weights of the estimates, newest first, in step i's predictor, and in its corrector (there the new one first)."""
    step = h[i]
    phi = torch.expm1(-step)  # also B(h)
    r = torch.stack([-h[i - j : i].sum() / step for j in range(1, order)] + [torch.ones_like(step)])
    right, term, factorial = [], torch.where(step.isinf(), -1.0, phi / -step - 1), 1.0
    for k in range(1, order + 1):
        right.append(term * factorial / phi)
        factorial *= k + 1
        term = torch.where(step.isinf(), torch.zeros_like(step), term / -step) - 1 / factorial
    powers = torch.stack([r**k for k in range(order)])
    b = torch.stack(right)
    half = torch.tensor([0.5], dtype=h.dtype)
    predictor = half if order == 2 else torch.linalg.solve(powers[:-1, :-1], b[:-1]) if order > 2 else half[:0]
    corrector = half if order == 1 else torch.linalg.solve(powers, b)
    old = (predictor / r[:-1]) * -alpha * phi
    old_c = (corrector[:-1] / r[:-1]) * -alpha * phi
    new = -alpha * phi * corrector[-1]
    base = -alpha * phi
    return (
        [float(base - old.sum()), *old.tolist()],
        [float(new), float(base - old_c.sum() - new), *old_c.tolist()],
    )


def _unipc(denoise, x: Tensor, grid: Grid, weights, order: int) -> Iterator[SamplerStep]:
    keep = (grid.end.sigma / grid.start.sigma).tolist()
    history: list[Tensor] = []
    before = x
    for i, (t, s) in enumerate(zip(grid.times, grid.ends, strict=False)):
        x_0 = denoise(x, t).x_0
        if i > 0:
            x = combined(before, keep[i - 1], *zip(weights[i - 1][1], [x_0, *history], strict=False))
        history = [x_0, *history][:order]
        before = x
        x = combined(before, keep[i], *zip(weights[i][0], history, strict=False))
        yield SamplerStep(i, s, x, x_0)
