"""Samplers that look back: higher order from the estimates of earlier steps, at one evaluation a step."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.diffusion.samplers.base import BoundDenoise, Grid, SamplerStep, StepNoise, combined, grid_of
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.spacing import Spacing


def _log_steps(grid: Grid) -> Tensor:
    """h: what lambda = ln(alpha/sigma) gains at each step; infinite out of zero SNR and into the clean image."""
    return (grid.end.log_snr - grid.start.log_snr) / 2


@dataclass(frozen=True)
class DPMSolverPP:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2): second order from the last two estimates; its first step and a
    last one into the clean image are DDIM's."""

    num_steps: int | None = 20
    spacing: Spacing = None

    deterministic = True

    def __call__(
        self, denoise: BoundDenoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise: StepNoise
    ) -> Iterator[SamplerStep]:
        return _dpmpp(denoise, x_T, grid_of(schedule, self.num_steps, self.spacing), 0.0, noise)


@dataclass(frozen=True)
class DPMSolverPPSDE:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, appendix): DPM-Solver++(2M) with new noise at every step.

    eta scales the noise: 1 is the paper's reverse SDE, 0 the ODE of DPMSolverPP.
    """

    num_steps: int | None = 50
    spacing: Spacing = None
    eta: float = 1.0

    @property
    def deterministic(self) -> bool:
        return self.eta == 0

    def __call__(
        self, denoise: BoundDenoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise: StepNoise
    ) -> Iterator[SamplerStep]:
        return _dpmpp(denoise, x_T, grid_of(schedule, self.num_steps, self.spacing), self.eta, noise)


def _dpmpp(denoise, x_T: Tensor, grid: Grid, eta: float, noise: StepNoise) -> Iterator[SamplerStep]:
    h = _log_steps(grid)
    lost = eta * h if eta else torch.zeros_like(h)  # in lambda, made good by noise
    keep = (grid.end.sigma / grid.start.sigma * (-lost).exp()).tolist()
    gain = (-grid.end.alpha * torch.expm1(-h - lost)).tolist()
    std = (grid.end.sigma * (-torch.expm1(-2 * lost)).sqrt()).tolist()
    # The estimate extrapolated is (1 + c) x_0 - c previous with c = h_i / (2 h_{i-1}).
    carry = [0.0, *torch.where(h[1:].isinf(), 0.0, h[1:] / (2 * h[:-1])).tolist()]
    return _two_step(denoise, x_T, grid, (keep, gain, carry, std), noise)


def _two_step(denoise, x, grid: Grid, weights: tuple[list[float], ...], noise) -> Iterator[SamplerStep]:
    keep, gain, carry, std = weights
    previous = x
    for i, (t, s) in enumerate(zip(grid.times, grid.ends, strict=False)):
        x_0 = denoise(x, t).x_0
        x = combined(x, keep[i], (gain[i] * (1 + carry[i]), x_0))
        if carry[i]:
            x.add_(previous, alpha=-gain[i] * carry[i])
        if std[i] > 0:
            x.add_(noise(i), alpha=std[i])
        previous = x_0
        yield SamplerStep(i, s, x, x_0)


@dataclass(frozen=True)
class GradientEstimation:
    """Euler's steps along an extrapolated noise estimate, gamma noise + (1 - gamma) previous noise (Permenter and Yuan
    2023, Algorithm 1, gamma = 2); gamma = 1 is DDIM. The first step and one into the clean image are DDIM's."""

    num_steps: int | None = 20
    spacing: Spacing = None
    gamma: float = 2.0

    deterministic = True

    def __call__(
        self, denoise: BoundDenoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise: StepNoise
    ) -> Iterator[SamplerStep]:
        grid = grid_of(schedule, self.num_steps, self.spacing)
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
class UniPC:
    """UniPC-p with B_2(h) = e^h - 1, predicting x_0 (Zhao et al. 2023, Algorithms 1-2): a multistep predictor, and a
    corrector that uses the next step's evaluation, so that one evaluation a step does for both.

    order p: 1..3; lower where the history is short and, on grids that end at the clean image, in the last steps.
    """

    num_steps: int | None = 20
    spacing: Spacing = None
    order: int = 2

    deterministic = True

    def __call__(
        self, denoise: BoundDenoise, x_T: Tensor, schedule: NoiseSchedule, variance, noise: StepNoise
    ) -> Iterator[SamplerStep]:
        if not 1 <= self.order <= 3:
            raise ValueError(f"sampler.order must lie in 1..3, got {self.order}")
        grid = grid_of(schedule, self.num_steps, self.spacing)
        h, alpha = _log_steps(grid), grid.end.alpha.tolist()
        orders = self._orders(h)
        weights = [_unipc_weights(h, i, order, alpha[i]) for i, order in enumerate(orders)]
        return _unipc(denoise, x_T, grid, weights, self.order)

    def _orders(self, h: Tensor) -> list[int]:
        """The order of each step: the estimates it may use, those before an infinite step being of no use."""
        orders, usable = [], 1
        for i, infinite in enumerate(h.isinf().tolist()):
            left = len(h) - i if h[-1].isinf() else self.order
            orders.append(1 if infinite else min(self.order, usable, left))
            usable = 1 if infinite else usable + 1
        return orders


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
