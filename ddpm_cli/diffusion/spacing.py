"""Step spacing: the times a sampler visits, from noise to image."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ddpm_cli.diffusion.gaussian import NoiseLevel

_ROWS = ("trailing", "leading", "linspace")  # visit whole timesteps
LEVEL_SPACINGS = ("karras", "log_snr", "log_snr_by_steps", "log_snr_to_1")  # choose noise levels: times are real
SPACINGS = _ROWS + LEVEL_SPACINGS

# sigma/alpha where walks over levels begin at the latest. At the cosine schedule's end it is 20,000: two thirds of the
# steps would pass where nothing is to be seen. DDPM's linear schedule ends at 157, EDM begins at 80.
MOST_SIGMA = 160.0

# sigma/alpha, times the number of steps, that `log_snr_by_steps` goes down to: chosen on exact mixtures and a trained
# network at 5 to 50 steps (docs/samplers.md). The cosine schedule's t = 1 is at 0.006, which the eye does not tell from
# the clean image, and a step of log-SNR costs as much there as anywhere.
_FINEST = 0.4

Spacing = str | Sequence[float] | None


class Levels(Protocol):
    """What a spacing needs to know of a NoiseSchedule, which itself hands out spaced times."""

    prior_scale: float
    spacing: str

    @property
    def num_timesteps(self) -> int: ...
    @property
    def zero_terminal_snr(self) -> bool: ...
    def level(self, t: Tensor | float) -> NoiseLevel: ...
    def time_of(self, log_snr: Tensor) -> Tensor: ...


def times(schedule: Levels, num_steps: int | None = None, spacing: Spacing = None, rho: float = 7.0) -> Tensor:
    """float64 on the CPU, (num_steps + 1,), descending; the last one is 0, but for `log_snr_to_1` and lists.

    num_steps: 1..T (any number for real times), None for T. spacing: None (the schedule's own), a list (these times as
    they stand, num_steps being theirs), or a name:
    `trailing` starts at T, `leading` ends at 1 and never visits T, `linspace` does both (Lin et al. 2023, Table 2);
    `karras` has sigma/alpha fall as Karras et al. 2022, Eq. 5, from T to 1 (from 160 where it is higher at T), with
    more steps at low noise the larger rho is;
    `log_snr` is uniform in log-SNR between the same (Lu et al. 2022); `log_snr_by_steps` the same, but down to a
    sigma/alpha of 0.4 / num_steps where that is above the one of 1, so that few steps are no longer than need be;
    `log_snr_to_1` as `log_snr`, all steps lying between T and 1, without one to the clean image.
    """
    if spacing is not None and not isinstance(spacing, str):
        return _listed(schedule, spacing)
    spacing = spacing or schedule.spacing
    total = schedule.num_timesteps
    num_steps = total if num_steps is None else num_steps
    if spacing not in SPACINGS:
        raise ValueError(f"sampler.spacing must be a list of times or one of {', '.join(SPACINGS)}, got {spacing}")
    if num_steps < 1 or (spacing in _ROWS and num_steps > total):
        raise ValueError(f"sampler.num_steps must lie in 1..{total} (the schedule's num_timesteps), got {num_steps}")
    if spacing in _ROWS:
        rows = _rows(total, num_steps, spacing)
        if spacing == "leading":
            _check_start(rows, total)
        return _ended(rows)
    if spacing == "log_snr_to_1":
        return _uniform(schedule, num_steps + 1)
    if spacing == "karras":
        return _ended(_karras(schedule, num_steps, rho))
    return _ended(_uniform(schedule, num_steps, _FINEST / num_steps if spacing == "log_snr_by_steps" else 0.0))


def _check_start(rows: Tensor, total: int) -> None:
    """`leading` steps by T // num_steps, and so begins a step below T; but where num_steps does not divide T it may
    begin, from pure noise, where there should be an image: at 501 of 1000 with 501 steps."""
    num_steps, first = len(rows), float(rows[0])
    if total - first - total / num_steps > total / 20:
        raise ValueError(
            f"sampler.spacing=leading with {num_steps} steps would begin at t = {first:g} of {total}; choose a number "
            "that divides the timesteps, or sampler.spacing=trailing"
        )


def _rows(total: int, num_steps: int, spacing: str) -> Tensor:
    i = torch.arange(num_steps, dtype=torch.float64)
    if spacing == "trailing":
        return (total - i * (total / num_steps)).round()
    if spacing == "leading":
        return (num_steps - 1 - i) * (total // num_steps) + 1
    return (total - i * ((total - 1) / max(num_steps - 1, 1))).round()


def _karras(schedule: Levels, num_steps: int, rho: float) -> Tensor:
    """sigma^(1/rho) linear (Karras et al. 2022, Eq. 5)."""
    first, last = _ends(schedule)
    share = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    high, low = ((-0.5 * log_snr).exp() ** (1 / rho) for log_snr in (first, last))
    return _between(schedule, -2 * rho * torch.lerp(high, low, share).log())


def _uniform(schedule: Levels, count: int, finest: float = 0.0) -> Tensor:
    """finest: the sigma/alpha it ends at, unless t = 1 lies above; but at least the first half of the range is walked,
    of a schedule that has hardly more noise than that."""
    first, last = _ends(schedule)
    if finest > 0:
        last = last.clamp(max=-2 * math.log(finest)).maximum((first + last) / 2)
    return _between(schedule, torch.lerp(first, last, torch.linspace(0, 1, count, dtype=torch.float64)))


def _ends(schedule: Levels) -> tuple[Tensor, Tensor]:
    """The log-SNR at T, but of at most MOST_SIGMA (or what x_T is scaled by, where that is more), and at 1."""
    if schedule.zero_terminal_snr:
        raise ValueError(
            "sampler.spacing: with zero terminal SNR the noise level at T is infinite; choose sampler.spacing=trailing"
        )
    level = schedule.level(torch.tensor([schedule.num_timesteps, 1]))
    most = max(MOST_SIGMA, schedule.prior_scale)
    return level.log_snr[0].clamp(min=-2 * math.log(most)), level.log_snr[1]


def _between(schedule: Levels, log_snr: Tensor) -> Tensor:
    """Real times of these log-SNRs; the ends are T (unless it lies higher) and 1 whatever the rounding."""
    t = schedule.time_of(log_snr)
    if t[0] > schedule.num_timesteps - 1e-6:
        t[0] = schedule.num_timesteps
    if len(t) > 1 and t[-1] < 1 + 1e-6:
        t[-1] = 1
    return t


def _listed(schedule: Levels, values: Sequence[float]) -> Tensor:
    t = torch.tensor([float(value) for value in values], dtype=torch.float64)
    inside = ((t >= 1) & (t <= schedule.num_timesteps)) | (t == 0)
    if len(t) < 2 or not (t.diff() < 0).all() or not inside.all():
        raise ValueError(
            f"sampler.spacing as a list must fall from at most {schedule.num_timesteps} through times of at least 1 "
            f"to its end, 0 for the clean image, e.g. [1000, 500, 100, 0]; got {[*values]}"
        )
    return t


def _ended(t: Tensor) -> Tensor:
    return torch.cat([t, torch.zeros(1, dtype=torch.float64)])
