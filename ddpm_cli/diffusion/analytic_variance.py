"""Measuring a trained denoiser for the analytic variance (Bao et al. 2022)."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Cond, Denoise
from ddpm_cli.diffusion.gaussian import diffuse
from ddpm_cli.diffusion.schedule import NoiseSchedule


def measured_times(schedule: NoiseSchedule, num_levels: int) -> list[int]:
    """Up to num_levels times from 1 to the last one with signal, evenly spread."""
    last = schedule.num_timesteps - int(schedule.zero_terminal_snr)
    return torch.linspace(1, last, min(num_levels, last)).round().long().unique().tolist()


def measure_noise_error(
    denoise: Denoise,
    batches: Iterable[tuple[Tensor, Cond]],
    schedule: NoiseSchedule,
    times: list[int],
    noise: Callable[[Tensor, int, int], Tensor],
) -> dict[str, Tensor]:
    """What variance.Analytic is made from: log_snr (N,) and noise_error (N,), float64 on the CPU.

    batches: of (x_0, cond); noise(x_0, batch, t): standard normal, of x_0's shape. The error of the noise is SNR times
    that of x_0, averaged over images and dimensions: one pass of the network a batch and time.
    """
    error, count = torch.zeros(len(times), dtype=torch.float64), 0
    for batch, (x_0, cond) in enumerate(batches):
        for i, step in enumerate(times):
            t = torch.full((len(x_0),), step, device=x_0.device)
            x_t = diffuse(x_0, noise(x_0, batch, step), schedule.level(t))
            off = (denoise(x_t, t, cond).x_0 - x_0).double()
            error[i] += (off**2).flatten(1).mean(1).sum().cpu()
        count += len(x_0)
    level = schedule.level(torch.tensor(times))
    return {"log_snr": level.log_snr, "noise_error": level.snr * error / count}
