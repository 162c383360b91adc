"""Looks out for losses and gradients that are not finite, and says which step and which images they came from."""

import torch
from torch import Tensor

from ddpm_cli.system.tree import leaves
from ddpm_cli.training.state import TrainState
from ddpm_cli.training.step import StepMetrics


class NonFinite(Exception):
    """Step `step` (counted from 0) had a loss or gradient that is not finite; it was not applied.

    t, total: of its images, where they are known.
    """

    def __init__(self, step: int, t: Tensor | None = None, total: Tensor | None = None):
        super().__init__(f"step {step}")
        self.step, self.t, self.total = step, t, total


class NonFiniteMonitor:
    """Remembers on the device the first step that was not finite, so that asking is the only wait."""

    def __init__(self, state: TrainState):
        self.state = state
        self._first: tuple[Tensor, Tensor, Tensor] | None = None  # step (-1: none yet), t, total

    def add(self, metrics: StepMetrics) -> None:
        """`metrics` are of the step just made."""
        bad = ~metrics.total.isfinite().all()
        if not self.state.scaler.is_enabled():  # a scaler skips infinite gradients by itself and lowers its scale
            bad |= ~metrics.grad_norm.isfinite()
        step = torch.where(bad, self.state.step - 1, -1)
        if self._first is None:
            self._first = step, metrics.t, metrics.total
            return
        known = self._first[0] >= 0
        now = (step, metrics.t, metrics.total)
        first, t, total = (torch.where(known, old, new) for old, new in zip(self._first, now, strict=True))
        self._first = first, t, total

    def check(self) -> None:
        """NonFinite if a step since the last check was; waits for the device."""
        if self._first is None:
            return
        step, t, total = self._first
        self._first = None
        if int(step) >= 0:
            raise NonFinite(int(step), t.cpu(), total.cpu())


def first_non_finite(state: object) -> str | None:
    """The name of an entry of a state that is not finite, None if all are; one wait for the device at the end."""
    found = [(key, leaf) for key, leaf in leaves(state) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not found:
        return None
    finite = torch.stack([tensor.isfinite().all().to(found[0][1].device) for _, tensor in found]).tolist()
    return next((name for (name, _), ok in zip(found, finite, strict=True) if not ok), None)
