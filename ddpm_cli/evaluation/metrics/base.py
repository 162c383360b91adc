"""A figure and the interval that belongs to it."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

CONFIDENCE = 0.95
_NORMAL_QUANTILE = 1.959964  # of 0.975
_FULL = 10_000  # images from which on a FID is called by its bare name
CHUNK = 2**24  # entries of a matrix of pairs that are worked on at once: 128 MiB


@dataclass(frozen=True)
class Score:
    """What a metric gives for n images.

    low, high: with the same number of other images of the same model (another seed), and the same reference, the value
    lies between them in 95 cases of 100. So two figures of which one lies outside the other's interval differ by more
    than luck (a two-sided test at the 5 % level). The interval of the expected value is sqrt(2) narrower.
    """

    value: float
    low: float
    high: float
    n: int
    better: Literal["lower", "higher"]
    extra: dict[str, float | int | None] = field(default_factory=dict)


def label_of(name: str, n: int) -> str:
    """What a figure is called: FID@5000 below 10,000 images, where its bias decides and no paper's figure is of that
    kind."""
    shown = name.upper() if len(name) == 3 else name.replace("_", " ")
    return f"{shown}@{n}" if name == "fid" and n < _FULL else shown


def interval(value: float, standard_error: float) -> tuple[float, float]:
    """Where another estimate of the same standard error lies in 95 cases of 100: the difference of two has sqrt(2) of
    it."""
    half = _NORMAL_QUANTILE * math.sqrt(2) * standard_error
    return value - half, value + half


def standard_error(influence: Tensor) -> float:
    """Of a smooth statistic of n rows, from what each row adds to it (the delta method): influence (n,)."""
    return float(influence.std()) / math.sqrt(len(influence))


def jackknife(without: Tensor) -> float:
    """The standard error of a statistic of n rows, from its values without each of them: without (n,)."""
    return math.sqrt(float((without - without.mean()).square().sum()) * (len(without) - 1) / len(without))


def share(count: int, n: int, standard_error: float = 0.0, **extra: int) -> Score:
    """count of n, with the binomial standard error where that is larger: with two more of each kind, so that 0 % and
    100 % are not taken for certain (Agresti and Coull 1998)."""
    value, likely = count / n, (count + 2) / (n + 4)
    low, high = interval(value, max(standard_error, math.sqrt(likely * (1 - likely) / n)))
    return Score(value, max(low, 0.0), min(high, 1.0), n, "higher", {**extra})


def checked(features: Tensor, what: str, *, least: int = 2) -> Tensor:
    """(n, D) in float64; ValueError unless there are enough rows and all numbers are finite."""
    if features.ndim != 2 or features.shape[1] == 0 or len(features) < least:
        raise ValueError(f"{what}: features must be (n, D) with n of at least {least}, got {tuple(features.shape)}")
    if not torch.isfinite(features).all():
        rows = int((~torch.isfinite(features)).any(1).sum())
        raise ValueError(
            f"{what}: the features of {rows} of {len(features)} images are not finite; choose other features"
        )
    return features.double()


def checked_reference(features: Tensor, *, least: int = 2) -> Tensor:
    """As checked; ValueError also where all rows are the same, to the rounding of float32: such features tell nothing
    apart, and everything would score 0."""
    rows = checked(features, "reference", least=least)
    spread, size = float(rows.std(0).max()), float(rows.abs().max())
    if spread <= 1e-5 * size:
        raise ValueError(
            f"reference: all {len(rows)} images have the same features (up to {size:.2g}, spread {spread:.2g}), which "
            "tell nothing apart; choose other features"
        )
    return rows
