"""Kernel inception distance (Binkowski et al. 2018): the squared maximum mean discrepancy, kernel (x.y / D + 1)^3."""

import math

import torch
from torch import Tensor

from ddpm_cli.evaluation.metrics.base import CHUNK, Score, checked, checked_reference, interval, jackknife

BLOCK = 5000  # rows whose pairs are all compared; more rows are compared block by block


def kid(features: Tensor, reference: Tensor) -> Score:
    """The unbiased estimate from all pairs of n images and the first n of the reference, in blocks of 5,000.

    Its expectation does not depend on n, nor on how many and how large subsets others average: all pairs have the least
    variance of them. The standard error is the jackknife's (on the large side where the sets hardly differ).
    """
    n = min(len(features), len(reference))
    x, real = checked(features, "images", least=3), checked_reference(reference[:n])
    blocks = max(1, round(n / BLOCK))
    parts = [_block(a, b) for a, b in zip(x[:n].chunk(blocks), real.chunk(blocks), strict=True)]
    sizes = torch.tensor([float(len(without)) for _, without in parts], dtype=torch.float64) / n
    value = float(sum(size * value for size, (value, _) in zip(sizes, parts, strict=True)))
    errors = [float(size) * jackknife(without) for size, (_, without) in zip(sizes, parts, strict=True)]
    low, high = interval(value, math.hypot(*errors))
    return Score(value, low, high, n, "lower", {"block": math.ceil(n / blocks)})


def _block(x: Tensor, real: Tensor) -> tuple[float, Tensor]:
    """MMD^2 of (m, D) and (r, D), and its values without each row of x: (m,)."""
    m, r = len(x), len(real)
    same = _row_sums(x, x) - _kernel((x * x).sum(1) / x.shape[1])  # without a row's pair with itself
    cross = _row_sums(x, real)
    among_real = (_row_sums(real, real) - _kernel((real * real).sum(1) / x.shape[1])).sum() / (r * (r - 1))
    value = same.sum() / (m * (m - 1)) + among_real - 2 * cross.sum() / (m * r)
    without = (same.sum() - 2 * same) / ((m - 1) * (m - 2)) - 2 * (cross.sum() - cross) / ((m - 1) * r)
    return float(value), without + among_real


def _kernel(product: Tensor) -> Tensor:
    return (product + 1) ** 3


def _row_sums(x: Tensor, y: Tensor) -> Tensor:
    """(m, D), (r, D) -> (m,): sums of the kernel over all rows of y."""
    rows = max(1, CHUNK // len(y))
    return torch.cat([_kernel(some @ y.T / x.shape[1]).sum(1) for some in x.split(rows)])
