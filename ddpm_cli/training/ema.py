"""Exponential moving average of a network's parameters, kept as a network of its own so that it can be sampled at any
time."""

import copy

import torch
from torch import nn


class EMA:
    """`network` holds the averaged parameters; buffers are copied, not averaged (averaging counters and tables breaks
    them)."""

    def __init__(self, network: nn.Module, decay: float, warmup: bool = True):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.warmup = decay, warmup
        self._averaged: list[torch.Tensor] = list(self.network.parameters())
        self._copied = list(self.network.buffers())

    def decay_at(self, step: int) -> float:
        """The decay of the update that follows `step` steps: min(decay, (1 + n) / (10 + n)) while warming up."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Moves the average towards `network`, which has been trained for `step` steps."""
        current = [p.detach() for p in network.parameters()]
        torch._foreach_lerp_(self._averaged, current, 1 - self.decay_at(step))
        for mine, theirs in zip(self._copied, network.buffers(), strict=True):
            mine.copy_(theirs)
