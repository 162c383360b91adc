"""What is measured between two log steps, summed on the device so that the loop never waits for it."""

import time
from typing import Any

import torch

from ddpm_cli.training.step import StepMetrics

QUARTERS = 4  # of the range of t: where the loss comes from


class Meter:
    """Sums of the steps since the last summary, and the time they took."""

    def __init__(self, num_timesteps: int, device: torch.device):
        self.num_timesteps, self.device = num_timesteps, device
        self._timed = 0
        self._loss = self._vb = self._last_norm = self._by_t = torch.empty(0)
        self._reset()

    def add(self, metrics: StepMetrics) -> None:
        self._images += len(metrics.total)
        self._timed += len(metrics.total)
        self._loss += metrics.total.sum()
        self._last_norm = metrics.grad_norm
        error = metrics.total if metrics.mse is None else metrics.mse
        quarter = ((metrics.t - 1) * QUARTERS / self.num_timesteps).long().clamp(0, QUARTERS - 1)
        self._by_t.index_add_(0, quarter, torch.stack([error, torch.ones_like(error)], 1).float())
        if metrics.vb is not None:
            self._vb += metrics.vb.sum()
            self._has_vb = True

    def __bool__(self) -> bool:
        """Whether there is something to sum up."""
        return self._images > 0

    def state_dict(self) -> dict[str, Any]:
        """The sums, for a checkpoint between two log steps."""
        sums = {"loss": self._loss, "vb": self._vb, "by_t": self._by_t, "norm": self._last_norm}
        return {"images": self._images, "has_vb": self._has_vb, "sums": {k: v.cpu() for k, v in sums.items()}}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self._reset()
        self._images, self._has_vb = saved["images"], saved["has_vb"]
        sums = {name: value.to(self.device) for name, value in saved["sums"].items()}
        self._loss, self._vb, self._by_t, self._last_norm = (sums[name] for name in ("loss", "vb", "by_t", "norm"))
        self._timed = 0

    def pause(self) -> float:
        """Starts a break (sampling, saving) that does not count as training time; give what it returns to resume."""
        return time.perf_counter()

    def resume(self, paused: float) -> None:
        self._started += time.perf_counter() - paused

    def summary(self) -> dict[str, float]:
        """Means since the last summary; waits for the device, then starts anew."""
        result = self.means()
        self._reset()
        return result

    def means(self) -> dict[str, float]:
        """Means since the last summary so far."""
        count = max(self._images, 1)
        result = {"loss": float(self._loss) / count, "grad_norm": float(self._last_norm)}
        result["images_per_second"] = self._timed / max(time.perf_counter() - self._started, 1e-9)
        for quarter, (total, number) in enumerate(self._by_t.tolist(), start=1):
            if number:
                result[f"loss_q{quarter}"] = total / number
        if self._has_vb:
            result["vb"] = float(self._vb) / count
        return result

    def _reset(self) -> None:
        self._images, self._has_vb, self._started = 0, False, time.perf_counter()
        self._timed = 0  # images since then; those before a resume took their time elsewhere
        self._loss, self._vb = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        self._last_norm = torch.zeros((), device=self.device)
        self._by_t = torch.zeros(QUARTERS, 2, device=self.device)
