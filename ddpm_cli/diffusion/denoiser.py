"""The denoiser: the one call through which losses and samplers see a network, and wrappers with the same call."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddpm_cli.diffusion.gaussian import expand
from ddpm_cli.diffusion.schedule import NoiseSchedule

Cond = Mapping[str, Tensor] | None  # "labels": (B,) int64, the null label being num_classes
Network = Callable[[Tensor, Tensor, Cond], Tensor]


@dataclass(frozen=True)
class Denoised:
    """The estimate of x_0, and the network's variance output where the variance is learned; both of x_t's shape."""

    x_0: Tensor
    raw: Tensor | None = None


Denoise = Callable[[Tensor, Tensor, Cond], Denoised]


class Denoiser(nn.Module):
    """(x_t, t, cond) -> Denoised: what the network predicts stays in here.

    x_t: (B, C, ...) float, t: (B,) or 0-dim in [1, T]. `amp_dtype` runs the network alone in autocast: the conversion
    to x_0 has coefficients up to 2e4 and stays in x_t's dtype (float64 in, float64 through).
    """

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, prediction, variance):
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
        self.call_network: Network = network  # what speeds the network up (compile, DDP) replaces this, not the network

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Denoised:
        level, before = self.schedule.level(t), self.schedule.level((t - 1).clamp(min=0))
        c_skip, c_out, c_in = self.prediction(level, before)
        time = self.schedule.network_time(t).to(x_t.device, x_t.dtype).expand(len(x_t))
        with torch.autocast(x_t.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            output = self.call_network(expand(c_in, x_t) * x_t, time, cond)
        raw = None
        if self.variance.learned:
            output, raw = output.to(x_t.dtype).chunk(2, dim=1)
        return Denoised(expand(c_skip, x_t) * x_t + expand(c_out, x_t) * output.to(x_t.dtype), raw)


def clipped(denoise: Denoise, limit: float = 1.0) -> Denoise:
    """The denoiser with its estimate of x_0 clipped to [-limit, limit], before any mean is made from it (Ho et al.
    2020)."""

    def denoise_clipped(x_t: Tensor, t: Tensor, cond: Cond = None) -> Denoised:
        denoised = denoise(x_t, t, cond)
        return Denoised(denoised.x_0.clamp(-limit, limit), denoised.raw)

    return denoise_clipped


def guided(denoise: Denoise, scale: float, null_label: int) -> Denoise:
    """Classifier-free guidance: uncond + scale (cond - uncond), so that 1 is off (Ho and Salimans 2022, Eq. 6, with
    scale = 1 + w).

    Both halves run as one batch; the variance output is the conditional one.
    """
    if scale == 1.0:
        return denoise

    def denoise_guided(x_t: Tensor, t: Tensor, cond: Cond = None) -> Denoised:
        if cond is None or "labels" not in cond:
            raise ValueError("guidance.scale needs a class-conditional model; leave it at 1")
        null = {**cond, "labels": torch.full_like(cond["labels"], null_label)}
        both = {key: torch.cat([cond[key], null[key]]) for key in cond}
        t_both = t if t.ndim == 0 else torch.cat([t, t])
        denoised = denoise(torch.cat([x_t, x_t]), t_both, both)
        with_label, without = denoised.x_0.chunk(2)
        return Denoised(
            torch.lerp(without, with_label, scale), None if denoised.raw is None else denoised.raw.chunk(2)[0]
        )

    return denoise_guided
