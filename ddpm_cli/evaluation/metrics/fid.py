"""Frechet inception distance (Heusel et al. 2017, Eq. 6): between Gaussians fitted to two sets of features."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.evaluation.metrics.base import Score, checked, checked_reference, interval, standard_error

_ROWS = 4096  # added to the sums at once; fixed, since the order of a sum is in its last bits
_MOST_PARTS = 4
_LEAST_ROWS = 2  # per dimension, in a part: with fewer the bias is no longer a multiple of 1/n


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and covariance (D, D) of n rows, float64."""

    mean: Tensor
    covariance: Tensor


def moments(features: Tensor) -> Moments:
    """The unbiased moments of (n, D)."""
    mean = torch.stack([rows.double().sum(0) for rows in features.split(_ROWS)]).sum(0) / len(features)
    covariance = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64, device=features.device)
    for rows in features.split(_ROWS):
        centred = rows.double() - mean
        covariance += centred.T @ centred
    return Moments(mean, covariance / (len(features) - 1))


def fid(features: Tensor, reference: Tensor) -> Score:
    """The distance of (n, D) from (N, D), with its standard error by the delta method.

    FID is too high by about b / n: compare figures of one n only. extra.extrapolated is the value at n = infinity by a
    line in 1/n (Chong and Forsyth 2020), through the mean FID of the halves, thirds and quarters of the images rather
    than of random subsets: those parts have the luck of the whole in common, so the line adds none of its own. None
    where the parts would be too small (n below four times the number of features).
    """
    x, real = checked(features, "images"), moments(checked_reference(reference))
    root = _root(real.covariance)
    value, influence = _distance(x, real, root)
    low, high = interval(value, standard_error(influence))
    return Score(value, max(low, 0.0), high, len(x), "lower", {"extrapolated": _extrapolated(x, value, real, root)})


def _distance(x: Tensor, real: Moments, root: Tensor) -> tuple[float, Tensor]:
    """FID, and what each row of x adds to it: the derivative of FID by the weight of that row."""
    fake = moments(x)
    values, vectors = torch.linalg.eigh(root @ fake.covariance @ root)
    values = values.clamp_min(0)
    distance = (fake.mean - real.mean).square().sum() + fake.covariance.trace() + real.covariance.trace()
    distance = (distance - 2 * values.sqrt().sum()).clamp_min(0)
    # d FID / d covariance = 1 - T, where T is the optimal transport's matrix from one Gaussian to the other:
    # root (root C root)^(-1/2) root; where C is singular, on its range.
    kept = values > values.max() * len(values) * torch.finfo(torch.float64).eps
    scales = torch.where(kept, values, torch.inf).pow(-0.25)
    half = root @ (vectors * scales)  # T = half half^T
    centred = x - fake.mean
    influence = 2 * centred @ (fake.mean - real.mean) + centred.square().sum(1) - (centred @ half).square().sum(1)
    return float(distance), influence


def _extrapolated(x: Tensor, whole: float, real: Moments, root: Tensor) -> float | None:
    parts = range(2, min(_MOST_PARTS, len(x) // (_LEAST_ROWS * x.shape[1])) + 1)
    if not parts:
        return None
    # every k-th row: images of one class often lie side by side
    means = [sum(_distance(x[start::k], real, root)[0] for start in range(k)) / k for k in parts]
    line = torch.tensor([[1.0, k] for k in (1, *parts)], dtype=torch.float64)
    points = torch.tensor([whole, *means], dtype=torch.float64)[:, None]
    return float(torch.linalg.lstsq(line, points).solution[0])


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a covariance."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
