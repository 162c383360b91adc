"""Averages of a network's parameters over training, each kept as a network of its own so that it can be sampled at any
time, and how fast they forget."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

Decay = Callable[[int], float]  # of the update that follows so many steps, in [0, 1)


class EMA:
    """`network` holds the averaged parameters; buffers are copied, not averaged (averaging counters and tables breaks
    them)."""

    def __init__(self, network: nn.Module, decay_at: Decay):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay_at = decay_at
        self._averaged: list[torch.Tensor] = list(self.network.parameters())
        self._copied = list(self.network.buffers())
        # Once and for all, since to walk through a network's modules costs milliseconds.
        self._followed: list[torch.Tensor] = list(network.parameters())
        self._buffers = list(network.buffers())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the network that it was made of, which has been trained for `step` steps."""
        torch._foreach_lerp_(self._averaged, self._followed, 1 - self.decay_at(step))
        for mine, theirs in zip(self._copied, self._buffers, strict=True):
            mine.copy_(theirs)


class Averaging(Protocol):
    """What every option of `ema` offers; one that derives from it states what differs from these defaults."""

    snapshots: int = 0  # of the averages, evenly over the run, from which others are rebuilt afterwards

    @property
    def tracked(self) -> dict[str, float]:
        """The lengths of the averages that others can be rebuilt from, by their names."""
        return {}

    def decays(self, batch_size: int) -> dict[str, Decay]:
        """By the average's name; `ema` is the one that is drawn from."""
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Averaging):
    """A constant decay; warmup: min(decay, (1 + n) / (10 + n)), so that early averages are not the initial weights."""

    decay: float
    warmup: bool = True

    def __call__(self, step: int) -> float:
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    def decays(self, batch_size: int) -> dict[str, Decay]:
        return {"ema": self}


@dataclass(frozen=True)
class HalfLife(Averaging):
    """A half-life in images, but at most `ramp` of the images seen so far (Karras et al. 2022, appendix F.2)."""

    half_life: float = 500_000
    ramp: float = 0.05

    def decays(self, batch_size: int) -> dict[str, Decay]:
        def decay(step: int) -> float:
            steps = min(self.half_life / batch_size, self.ramp * step)
            return 0.5 ** (1 / steps) if steps > 0 else 0.0

        return {"ema": decay}


@dataclass(frozen=True)
class PowerFunction(Averaging):
    """Weights proportional to a power of time, whose widths are shares of the run however long it gets (Karras et al.
    2024, Section 3.1). Two lengths, kept `snapshots` times over the run, give any other afterwards (Section 3.2)."""

    lengths: tuple[float, ...] = (0.05, 0.10)  # relative standard deviations; the first is drawn from
    snapshots: int = 32

    def decays(self, batch_size: int) -> dict[str, Decay]:
        return {name: power_decay(length) for name, length in self.tracked.items()}

    @property
    def tracked(self) -> dict[str, float]:
        return {"ema" if i == 0 else f"ema@{length:g}": length for i, length in enumerate(self.lengths)}


def power_decay(length: float) -> Decay:
    """(1 - 1 / t)^(gamma + 1) (Karras et al. 2024, Eq. 123-127); the first update copies the weights."""
    gamma = gamma_of(length)
    return lambda step: (1 - 1 / max(step, 1)) ** (gamma + 1)


def gamma_of(length: float) -> float:
    """The power whose average has this relative standard deviation, at most 0.28 (Karras et al. 2024, Eq. 123-127)."""
    inverse = length**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def mixing(times: list[tuple[float, float]], wanted: tuple[float, float]) -> np.ndarray:
    """How averages, each of (step, gamma), are mixed into the one wanted: weights that sum to 1, by least squares of
    their profiles over time (Karras et al. 2024, Section 3.2)."""
    t, gamma = (np.array(column, dtype=np.float64) for column in zip(*times, strict=True))
    products = _overlap(t[:, None], gamma[:, None], t[None], gamma[None])
    with_wanted = _overlap(t, gamma, *np.array(wanted, dtype=np.float64)[:, None])
    weights = np.linalg.lstsq(products, with_wanted, rcond=1e-14)[0]
    return weights / weights.sum()


def _overlap(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """The integral of the product of two profiles (Karras et al. 2024, Eq. 151)."""
    ratio = (t_a / t_b) ** np.where(t_a < t_b, gamma_b, -gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * ratio / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))
