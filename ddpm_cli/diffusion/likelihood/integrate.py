"""Ordinary differential equations whose rows step each at their own pace."""

from collections.abc import Callable

import torch
from torch import Tensor

# Dormand and Prince 1980: the places of the stages, what each is made of, and order 5 less the order 4 inside it. The
# last stage is the new state, and the first of the next step.
_PLACES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_MOST_STEPS = 1000  # of a row: a slope that is not smooth, as of rounded numbers, ends too

Slope = Callable[[Tensor, Tensor, Tensor], Tensor]  # (s (b,), u (b, N), rows (b,)) -> du / ds, (b, N)


def integrate(
    slope: Slope, u: Tensor, start: float, end: float, *, tolerance: float, norm: Callable[[Tensor], Tensor]
) -> Tensor:
    """u(end), (B, N), for u(start) = u: steps of order 5 whose error, norm(error (b, N)) -> (b,), is kept below
    `tolerance`.

    Each row has its own steps and leaves when it is done, so none depends on its neighbours; `rows` tells which the
    slope is asked for.
    """
    result, rows = torch.empty_like(u), torch.arange(len(u), device=u.device)
    least = (end - start) / _MOST_STEPS
    s, h = torch.full_like(u[:, 0], start), torch.full_like(u[:, 0], (end - start) / 50)
    first = slope(s, u, rows)
    while len(rows):
        h = torch.minimum(h, end - s)
        slopes = [first]
        for place, stage in zip(_PLACES, _STAGES, strict=True):
            new = u + h[:, None] * _mixed(stage, slopes)
            slopes.append(slope(s + place * h, new, rows))
        error = (norm(h[:, None] * _mixed(_ERROR, slopes)) / tolerance).nan_to_num(torch.inf)
        good = (error <= 1) | (h <= least)
        s, u = torch.where(good, s + h, s), torch.where(good[:, None], new, u)
        first = torch.where(good[:, None], slopes[-1], first)
        h = (h * (0.9 * error**-0.2).clamp(0.2, 5.0)).clamp(min=least)
        left = s < end - 1e-9 * (end - start)
        result[rows[~left]] = u[~left]
        rows, s, u, h, first = rows[left], s[left], u[left], h[left], first[left]
    return result


def _mixed(shares: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    mixed = shares[0] * slopes[0]
    for share, slope in zip(shares[1:], slopes[1:], strict=True):
        mixed = mixed.add(slope, alpha=share) if share else mixed
    return mixed
