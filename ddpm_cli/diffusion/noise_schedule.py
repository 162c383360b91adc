"""The noise schedule: a table of levels, read at whole or real times."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_cli.diffusion.gaussian import NoiseLevel
from ddpm_cli.diffusion.spacing import Spacing, times


def variance_preserving(log_snr: Tensor) -> NoiseLevel:
    """The level with alpha² + sigma² = 1, as DDPM has it."""
    return NoiseLevel(torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt())


def variance_exploding(log_snr: Tensor) -> NoiseLevel:
    """The level with alpha = 1, as EDM has it."""
    return NoiseLevel(torch.ones_like(log_snr), torch.exp(-0.5 * log_snr))


def straight(log_snr: Tensor) -> NoiseLevel:
    """The level with alpha + sigma = 1, as rectified flows have it."""
    return NoiseLevel(torch.sigmoid(log_snr / 2), torch.sigmoid(-log_snr / 2))


class NoiseSchedule:
    """T + 1 noise levels, row 0 the clean image (1, 0), interpolated in log-SNR between rows 1 and T.

    t lies in {0} and [1, T], integer or real. The tables are float64 (one copy per device, made on use) and belong to
    no state dict: they are recomputed from the configuration.
    """

    def __init__(
        self,
        alpha: Tensor,
        sigma: Tensor,
        *,
        level_of: Callable[[Tensor], NoiseLevel] = variance_preserving,
        network_time: Callable[[Tensor, NoiseLevel], Tensor] = lambda t, level: t - 1,
        prior_scale: float = 1.0,
        spacing: str = "trailing",
        continuous: bool = False,
    ):
        """alpha, sigma: (T + 1,) float64. level_of serves real t, network_time what the network embeds (the raw index
        t - 1, as diffusers has it); x_T is prior_scale times standard normal noise; spacing is times()'s default.
        continuous: the rows sample a formula, and training may draw real t."""
        self.alpha, self.sigma = alpha, sigma
        self.prior_scale, self.spacing, self.continuous = prior_scale, spacing, continuous
        self._level_of, self._network_time = level_of, network_time
        log_snr = 2 * (alpha.log() - sigma.log())
        if not (log_snr.diff() < 0).all():
            raise ValueError("a noise schedule must lose signal at every step; choose fewer or larger steps")
        self._tables = {torch.device("cpu"): (alpha, sigma, log_snr)}

    @property
    def num_timesteps(self) -> int:
        return len(self.alpha) - 1

    @property
    def alpha_bar(self) -> Tensor:
        """DDPM's cumulative product of 1 - beta: float64 (T + 1,), row 0 = 1."""
        return self.alpha**2

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether x_T holds nothing of x_0 (Lin et al. 2023)."""
        return float(self.alpha[-1]) == 0.0

    def level(self, t: Tensor | float) -> NoiseLevel:
        """The noise level at t: of t's shape, on its device, in float64."""
        t = torch.as_tensor(t)
        alpha, sigma, log_snr = self._on(t.device)
        row = t.floor().long() if t.is_floating_point() else t.long()
        if not t.is_floating_point():
            return NoiseLevel(alpha[row], sigma[row])
        above = (row + 1).clamp(max=self.num_timesteps)
        # (0, 1) is no time and falls back to row 0; with zero terminal SNR the last row stands alone.
        between = (t > row) & (row >= 1) & log_snr[above].isfinite()
        upper = torch.where(between, log_snr[above], 0.0)
        lower = torch.where(between, log_snr[row], 0.0)
        mixed = self._level_of(torch.lerp(lower, upper, (t - row).to(lower.dtype)))
        return NoiseLevel(torch.where(between, mixed.alpha, alpha[row]), torch.where(between, mixed.sigma, sigma[row]))

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The real t in [1, T] whose level has this log-SNR (clamped to the range), of its shape, float64."""
        table = self._on(log_snr.device)[2][1:]
        finite = table[:-1] if self.zero_terminal_snr else table
        wanted = log_snr.to(table.dtype).clamp(finite[-1], finite[0])
        below = torch.searchsorted(-finite, -wanted, right=True).clamp(1, max(len(finite) - 1, 1)) - 1
        above = (below + 1).clamp(max=len(finite) - 1)
        gap = finite[below] - finite[above]
        fraction = torch.where(gap > 0, (finite[below] - wanted) / gap.clamp(min=1e-300), 0.0)
        t = below + 1 + fraction
        return torch.where(torch.isneginf(log_snr), float(self.num_timesteps), t) if self.zero_terminal_snr else t

    def times(self, num_steps: int | None = None, spacing: Spacing = None, rho: float = 7.0) -> Tensor:
        """The times of a walk from noise to image: see spacing.times."""
        return times(self, num_steps, spacing, rho)

    def prior(self, noise: Tensor) -> Tensor:
        """x_T made from standard normal noise."""
        return noise if self.prior_scale == 1.0 else self.prior_scale * noise

    def network_time(self, t: Tensor) -> Tensor:
        """What the network embeds for time t, of t's shape, float64."""
        t = t.double() if t.device.type != "mps" else t.float()
        return self._network_time(t, self.level(t))

    @property
    def time_span(self) -> float:
        """How far the times go that the network embeds."""
        with torch.device("cpu"):  # also where a network is built without memory
            first, last = self.network_time(torch.tensor([1.0, self.num_timesteps]))
        return abs(float(last - first)) or 1.0

    def with_network_time(self, network_time: Callable[[Tensor, NoiseLevel], Tensor]) -> "NoiseSchedule":
        """The same levels and walks, another time for the network."""
        return NoiseSchedule(
            self.alpha,
            self.sigma,
            level_of=self._level_of,
            network_time=network_time,
            prior_scale=self.prior_scale,
            spacing=self.spacing,
            continuous=self.continuous,
        )

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        if device not in self._tables:
            dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
            alpha, sigma, log_snr = self._tables[torch.device("cpu")]
            self._tables[device] = (alpha.to(device, dtype), sigma.to(device, dtype), log_snr.to(device, dtype))
        return self._tables[device]
