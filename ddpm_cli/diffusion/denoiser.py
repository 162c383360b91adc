"""The denoiser: the one call through which losses and samplers see a network, and wrappers with the same call."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddpm_cli.diffusion.gaussian import expand
from ddpm_cli.diffusion.prediction import Prediction
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.variance import Variance

# "labels": (B,) int64, the null label being num_classes; "condition": (B, K, H, W), "vector": (B, D), of a network that
# is drawn from such
Cond = Mapping[str, Tensor] | None
Network = Callable[[Tensor, Tensor, Cond], Tensor]


@dataclass(frozen=True)
class Denoised:
    """The estimate of x_0, and the network's variance output where the variance is learned; both of x_t's shape."""

    x_0: Tensor
    raw: Tensor | None = None


Denoise = Callable[[Tensor, Tensor, Cond], Denoised]
BoundDenoise = Callable[[Tensor, Tensor], Denoised]  # its conditioning bound


class Denoiser(nn.Module):
    """(x_t, t, cond) -> Denoised: what the network predicts stays in here.

    x_t: (B, C, ...) float, t: (B,) or 0-dim in [1, T]. `amp_dtype` runs the network alone in autocast, `network_dtype`
    says that its weights are of that type: the conversion to x_0 has coefficients up to 2e4 and stays in x_t's dtype
    (float64 in, float64 through).
    """

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, prediction: Prediction, variance: Variance):
        super().__init__()
        if schedule.zero_terminal_snr and prediction.needs_signal:
            raise ValueError(
                "this prediction cannot recover x_0 at zero terminal SNR; choose prediction=v or prediction=x0"
            )
        if schedule.continuous and prediction.needs_table:
            raise ValueError(
                "this prediction is defined by the steps of a table, and the schedule's times are real; "
                "choose prediction=edm or prediction=v, or a schedule with a table such as schedule=cosine"
            )
        self.network = network
        self.schedule, self.prediction, self.variance = schedule, prediction, variance
        self.amp_dtype: torch.dtype | None = None
        self.network_dtype: torch.dtype | None = None
        # What speeds the network up replaces this, not the network; a method, since a module would become a child.
        self.call_network: Network = network.__call__
        self._known: dict[float, tuple[float, ...]] = {}  # coefficients and network time of times met

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Denoised:
        if t.ndim == 0 and t.device.type == "cpu":
            return self._at_one_time(x_t, float(t), cond)
        c_skip, c_out, c_in = self._coefficients(t)
        time = self.schedule.network_time(t).to(x_t.device, x_t.dtype).expand(len(x_t))
        output, raw = self._output(expand(c_in, x_t) * x_t, time, cond)
        return Denoised(expand(c_skip, x_t) * x_t + expand(c_out, x_t) * output, raw)

    def _at_one_time(self, x_t: Tensor, t: float, cond: Cond) -> Denoised:
        """All images at the same t, as samplers call: the coefficients are plain numbers, computed once."""
        if t not in self._known:
            at = torch.tensor(t, dtype=torch.float64)
            values = (*self._coefficients(at), self.schedule.network_time(at))
            self._known[t] = tuple(float(value) for value in values)
        c_skip, c_out, c_in, time = self._known[t]
        scaled = x_t if c_in == 1.0 else x_t * c_in
        output, raw = self._output(scaled, x_t.new_full((len(x_t),), time), cond)
        x_0 = output * c_out
        return Denoised(x_0.add_(x_t, alpha=c_skip) if c_skip else x_0, raw)

    def _coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.prediction(self.schedule.level(t), self.schedule.level((t - 1).clamp(min=0)))

    def _output(self, scaled: Tensor, time: Tensor, cond: Cond) -> tuple[Tensor, Tensor | None]:
        """The network's prediction and its variance output, in the input's dtype. The network has the channels of a
        condition behind those of x_t (SR3, Saharia et al. 2021, Section 2.4)."""
        dtype = scaled.dtype
        if cond is not None and "condition" in cond:
            scaled = torch.cat([scaled, cond["condition"].to(dtype)], 1)
        if self.amp_dtype is None:
            output = self.call_network(scaled.to(self.network_dtype or scaled.dtype), time, cond)
        else:
            with torch.autocast(scaled.device.type, self.amp_dtype):
                output = self.call_network(scaled, time, cond)
        output = output.to(dtype)
        if not self.variance.learned:
            return output, None
        prediction, raw = output.chunk(2, dim=1)
        return prediction, raw


def clipped(denoise: Denoise, limit: float = 1.0) -> Denoise:
    """The denoiser with its x_0 clipped to [-limit, limit], before any mean is made from it (Ho et al. 2020)."""

    def denoise_clipped(x_t: Tensor, t: Tensor, cond: Cond = None) -> Denoised:
        denoised = denoise(x_t, t, cond)
        return Denoised(denoised.x_0.clamp(-limit, limit), denoised.raw)

    return denoise_clipped


def thresholded(denoise: Denoise, percentile: float = 0.995) -> Denoise:
    """Dynamic thresholding (Saharia et al. 2022, Section 2.3): each image's estimate is clipped to that percentile of
    its absolute values, and divided by it, where it exceeds 1; for large guidance scales."""

    def denoise_thresholded(x_t: Tensor, t: Tensor, cond: Cond = None) -> Denoised:
        denoised = denoise(x_t, t, cond)
        values = denoised.x_0.abs().flatten(1).float()
        limit = torch.quantile(values, percentile, dim=1).clamp(min=1.0)
        limit = expand(limit, denoised.x_0)
        return Denoised(torch.minimum(torch.maximum(denoised.x_0, -limit), limit) / limit, denoised.raw)

    return denoise_thresholded
