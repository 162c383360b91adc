"""What is measured between two log steps, summed on the device so that the loop never waits for it."""

import time
from typing import Any

import torch

from ddpm_cli.training.step import StepMetrics

_KEPT = 0.9  # of what was known of the gradient's noise, at each measurement


class Meter:
    """Sums of the steps since the last summary, and the time they took."""

    def __init__(self, device: torch.device):
        self.device = device
        self._timed, self._sums = 0, dict[str, torch.Tensor]()
        self._reset()

    def add(self, metrics: StepMetrics) -> None:
        self._images += len(metrics.total)
        self._timed += len(metrics.total)
        self._sums["loss"] += metrics.total.sum()
        self._sums["norm"] = metrics.grad_norm  # the last one: no sum, but kept like one
        if metrics.vb is not None:
            self._sums["vb"] += metrics.vb.sum()
            self._has_vb = True

    def add_half(self, norm: torch.Tensor, count: int, metrics: StepMetrics) -> None:
        """The norm of the gradient of `count` images of the step that `metrics` are of: from the two the noise scale
        follows (McCandlish et al. 2018, Appendix A.1), a ratio of two estimates that are averaged each by itself."""
        batch, small, large = len(metrics.total), norm.double() ** 2, metrics.grad_norm.double() ** 2
        signal = (batch * large - count * small) / (batch - count)
        noise = (small - large) / (1 / count - 1 / batch)
        new = _KEPT * self._sums["noise"] + (1 - _KEPT) * torch.stack([noise, signal]).to(self._sums["noise"])
        self._sums["noise"] = torch.where(new.isfinite().all(), new, self._sums["noise"])

    def __bool__(self) -> bool:
        """Whether there is something to sum up."""
        return self._images > 0

    def state_dict(self) -> dict[str, Any]:
        """The sums, for a checkpoint between two log steps."""
        sums = {name: value.cpu() for name, value in self._sums.items()}
        return {"images": self._images, "has_vb": self._has_vb, "sums": sums}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self._reset()
        self._images, self._has_vb = saved["images"], saved["has_vb"]
        self._sums |= {name: value.to(self.device) for name, value in saved["sums"].items() if name in self._sums}

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
        result = {"loss": float(self._sums["loss"]) / count, "grad_norm": float(self._sums["norm"])}
        result["images_per_second"] = self._timed / max(time.perf_counter() - self._started, 1e-9)
        if self._has_vb:
            result["vb"] = float(self._sums["vb"]) / count
        noise, signal = self._sums["noise"].tolist()
        if signal > 0 and noise > 0:  # unbiased estimates: the signal's may be negative where noise is all there is
            result["noise_scale"] = noise / signal
        return result

    def _reset(self) -> None:
        self._images, self._has_vb, self._started = 0, False, time.perf_counter()
        self._timed = 0  # images since then; those before a resume took their time elsewhere
        zeros = {name: torch.zeros((), device=self.device) for name in ("loss", "vb", "norm")}
        noise = self._sums.get("noise", torch.zeros(2, device=self.device))  # and signal: go on over log steps
        self._sums = {**zeros, "noise": noise}
