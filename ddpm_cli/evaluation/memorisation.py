"""Whether images are copies of training images: how much closer they are to one of them than to the next ones, against
the same of real images that were never trained on."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.data.store import Items
from ddpm_cli.evaluation.metrics.base import Score, interval

NEIGHBOURS = 50  # to which the nearest is compared (Carlini et al. 2023, Section 4.2)
RARE = 0.01  # the share of held-out images that count as copies
_SPARE = 8  # candidates beyond those asked for, since they are found in float32
_ROWS, _COLUMNS = 512, 16384
_EXACT = 2**22  # numbers that are measured at once
_SHOWN = 32  # on a contact sheet


@dataclass(frozen=True)
class Nearest:
    """Of each image the training image that is nearest, and how near it is beside the next ones."""

    index: np.ndarray  # (N,) rows of the training set
    distance: np.ndarray  # (N,) to it
    ratio: np.ndarray  # (N,) in [0, 1]: distance over the mean distance to the NEIGHBOURS nearest; 0 of a copy


def nearest(images: Tensor, training: Items, device: torch.device | str = "cpu") -> Nearest:
    """images (N, ...), training (M, ...): uint8 pixels or float32 features; Euclidean distance.

    Candidates are found by |a|^2 - 2 a.b + |b|^2, which near zero is rounding alone, and then measured.
    """
    count = min(NEIGHBOURS, len(training))
    candidates = torch.cat([_candidates(rows, training, count + _SPARE, device) for rows in images.split(_ROWS)])
    at_once = max(1, _EXACT // (candidates.shape[1] * training[0].numel()))
    found = []
    for rows, near in zip(images.split(at_once), candidates.split(at_once), strict=True):
        others = training[near.flatten()].view(*near.shape, -1).double()  # (B, count, D)
        distances = (others - rows.flatten(1).double()[:, None]).norm(dim=2)
        distances, order = distances.sort(dim=1, stable=True)
        found.append((near.gather(1, order)[:, 0], distances[:, :count]))
    index, distances = torch.cat([i for i, _ in found]), torch.cat([d for _, d in found])
    mean = distances.mean(1)
    ratio = torch.where(mean > 0, distances[:, 0] / mean, 0)  # one of 50 copies is one too
    return Nearest(index.numpy(), distances[:, 0].numpy(), ratio.numpy())


def _candidates(images: Tensor, training: Items, count: int, device: torch.device | str) -> Tensor:
    """(B, count) rows of the training set, about the nearest."""
    rows = images.to(device).flatten(1).float()
    best, where = torch.empty(len(rows), 0, device=rows.device), torch.empty(len(rows), 0, device=rows.device).long()
    for start in range(0, len(training), _COLUMNS):
        others = training[start : start + _COLUMNS].to(device).flatten(1).float()
        squares = others.square().sum(1) - 2 * rows @ others.T
        columns = torch.arange(start, start + len(others), device=rows.device).expand(len(rows), -1)
        best, order = torch.cat([best, squares], 1).topk(min(count, best.shape[1] + len(others)), largest=False)
        where = torch.cat([where, columns], 1).gather(1, order)
    return where.cpu()


def memorised(drawn: Nearest, held_out: Nearest) -> Score:
    """The share of images that are as close to a training image as only RARE of the held-out images are: about RARE
    where nothing was copied, 1 where all were."""
    n, m = len(drawn.ratio), len(held_out.ratio)
    limit = float(np.quantile(held_out.ratio, RARE, method="higher"))
    share, floor = (float((found.ratio <= limit).mean()) for found in (drawn, held_out))
    smoothed = (share * n + 2) / (n + 4)  # Agresti and Coull 1998: none of n is not certainly none
    error = math.sqrt(smoothed * (1 - smoothed) / n + RARE * (1 - RARE) / m)  # the limit's, if both sets are alike
    low, high = interval(share, error)
    extra: dict[str, float | int | None] = {
        "limit": limit,
        "floor": floor,
        "num_held_out": m,
        "closer": _closer(drawn, held_out),
    }
    return Score(share, max(low, 0.0), min(high, 1.0), n, "lower", extra)


def _closer(drawn: Nearest, held_out: Nearest) -> float:
    """The probability that an image is closer to the training set than a held-out image: 0.5 if they are alike (Meehan
    et al. 2020)."""
    order = np.sort(held_out.distance)
    below, above = (np.searchsorted(order, drawn.distance, side=side) for side in ("left", "right"))
    return float(1 - (below + above).mean() / (2 * len(order)))


def contact_sheet(
    images: Callable[[Tensor], Tensor], training: Callable[[Tensor], Tensor], by: list[Nearest]
) -> tuple[Tensor, int]:
    """uint8 pictures in rows of the given number of columns: the images that look most like copies, and under each its
    nearest training image, in every space that is given. images, training: pictures of those with given numbers."""
    order = np.argsort(by[0].ratio, kind="stable")[:_SHOWN]
    columns = min(16, len(order))
    ground = torch.full_like(images(torch.tensor([0])), 128)
    rows = []
    for start in range(0, len(order), columns):
        some = torch.from_numpy(order[start : start + columns])
        short = ground.expand(columns - len(some), -1, -1, -1)
        sets = [images(some), *(training(torch.from_numpy(near.index)[some]) for near in by)]
        rows += [torch.cat([items, short]) for items in sets]
        if start + columns < len(order):
            rows.append(ground.expand(columns, -1, -1, -1))
    return torch.cat(rows), columns
