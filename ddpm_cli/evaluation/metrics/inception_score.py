"""Inception score (Salimans et al. 2016): exp of the mean KL(p(y|x) || p(y))."""

import math

import torch
from torch import Tensor

from ddpm_cli.evaluation.metrics.base import Score, checked, interval, standard_error


def inception_score(probabilities: Tensor) -> Score:
    """Of (n, K) class probabilities, 1 to K: all images at once, where others average ten parts of them.

    The mean over x of p(y|x) makes it a little too high, by about exp((K - 1) / 2n). Nothing real is compared with.
    """
    p = checked(probabilities, "probabilities")
    if (p < 0).any() or not torch.allclose(p.sum(1), torch.ones(len(p), dtype=p.dtype, device=p.device), atol=1e-3):
        raise ValueError("probabilities: each row must sum to 1 and hold nothing below 0; choose other features")
    p = p / p.sum(1, keepdim=True)
    # by xlogy, 0 log 0 = 0. A row's share of p(y) adds nothing to first order, so these are the influences too
    divergence = (torch.special.xlogy(p, p) - torch.special.xlogy(p, p.mean(0))).sum(1)
    log_score = float(divergence.mean())
    low, high = interval(log_score, standard_error(divergence))
    return Score(math.exp(log_score), math.exp(low), math.exp(high), len(p), "higher", {"classes": p.shape[1]})
