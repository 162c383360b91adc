"""Improved precision and recall (Kynkaanniemi et al. 2019): shares of images inside the other set's manifold."""

import torch
from torch import Tensor

from ddpm_cli.evaluation.metrics.base import CHUNK, Score, checked, checked_reference, jackknife, share

NEIGHBOURS = 3  # the paper's k


def precision_recall(features: Tensor, reference: Tensor) -> dict[str, Score]:
    """Of n images and the first n of the reference (the paper has 50,000 of each).

    The manifold of a set is the union of balls around its rows, each as large as the distance to the row's k-th nearest
    neighbour. precision: how many images lie in the reference's; recall: how many of the reference in the images'.
    """
    n = min(len(features), len(reference))
    x = checked(features, "images", least=NEIGHBOURS + 2)[:n]
    real = checked_reference(reference[:n], least=NEIGHBOURS + 2)
    return {"precision": _precision(x, real), "recall": _recall(x, real)}


def _precision(x: Tensor, real: Tensor) -> Score:
    """Each image lies inside or not, independently of the others: binomial."""
    radii, inside = _neighbours(real)[0][:, NEIGHBOURS - 1], 0
    for rows in _chunks(x, len(real)):
        inside += int((_distances(rows, real) <= radii).any(1).sum())
    return share(inside, len(x), neighbours=NEIGHBOURS)


def _recall(x: Tensor, real: Tensor) -> Score:
    """With a standard error by the jackknife over x, which is never too small on average (Efron and Stein 1981), and
    measured up to twice too large.

    Without row i its own ball is gone, and the balls it was a neighbour of grow to their k + 1-st.
    """
    distances, numbers = _neighbours(x)
    small, large = distances[:, NEIGHBOURS - 1], distances[:, NEIGHBOURS]
    num_covered, change = 0, torch.zeros(len(x), dtype=torch.float64, device=x.device)  # by leaving out each row
    for rows in _chunks(real, len(x)):
        squared = _distances(rows, x)
        inside = squared <= small
        count, only = inside.sum(1), inside.int().argmax(1)  # of balls; the first one, or the only
        num_covered += int((count > 0).sum())
        change -= only[count == 1].bincount(minlength=len(x))
        # pairs (real row, i): the row lies in a ball that grows where i is left out
        row, ball = ((squared <= large) & (count <= 1)[:, None]).nonzero(as_tuple=True)
        pairs = torch.stack([row.repeat_interleave(NEIGHBOURS), numbers[ball, :NEIGHBOURS].flatten()]).unique(dim=1)
        matters = (count[pairs[0]] == 0) | (only[pairs[0]] == pairs[1])
        change += pairs[1, matters].bincount(minlength=len(x))
    return share(num_covered, len(x), jackknife(change / len(real)), neighbours=NEIGHBOURS)


def _neighbours(x: Tensor) -> tuple[Tensor, Tensor]:
    """The k + 1 nearest other rows of each: squared distances in rising order, and numbers, both (n, k + 1)."""
    found, start = [], 0
    for rows in _chunks(x, len(x)):
        distances, own = _distances(rows, x), torch.arange(len(rows), device=x.device)
        distances[own, start + own] = torch.inf
        found.append(distances.topk(NEIGHBOURS + 1, largest=False))
        start += len(rows)
    return torch.cat([nearest.values for nearest in found]), torch.cat([nearest.indices for nearest in found])


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """(m, D), (r, D) -> (m, r) squared."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp_min_(0)


def _chunks(x: Tensor, others: int) -> tuple[Tensor, ...]:
    return x.split(max(1, CHUNK // others))
