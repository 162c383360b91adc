"""The error of v by noise level, on images and noise that stay the same: runs are compared by it, whatever they train.

|v - v_hat|² = (1 + SNR) |x_0 - x_0_hat|² where alpha² + sigma² = 1 (Salimans and Ho 2022), averaged over dimensions: at
little noise the error of the noise, at much that of x_0. No weighting, schedule, prediction or seed is in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli.data.conditions import Conditions
from ddpm_cli.data.store import Store
from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.gaussian import diffuse, expand
from ddpm_cli.diffusion.losses import expand_log_variance, mean_flat, variance_floor
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.variance import FixedLarge, FixedSmall
from ddpm_cli.seeding import generator
from ddpm_cli.training.random_numbers import conditioning

LOG_SNRS = (7, 5, 3, 1, -1, -3, -5, -7)  # an image in eight at each; those beyond the schedule's ends are left out
NUM_IMAGES = 256
_CHOICE, _NOISE = 401, 402


@dataclass(frozen=True)
class FixedImages:
    """Images of a set with their labels and noise, alike in every run on these data."""

    x_0: Tensor
    labels: Tensor | None
    noise: Tensor
    conditions: Mapping[str, Tensor] | None = None  # what the network is told beside the labels

    @classmethod
    def of(cls, store: Store, device: torch.device, conditions: Conditions | None = None) -> "FixedImages":
        chosen = torch.randperm(len(store), generator=generator("cpu", _CHOICE))[:NUM_IMAGES]
        x_0 = store.to_model(store.items[chosen])
        noise = torch.randn(x_0.shape, generator=generator("cpu", _NOISE))
        labels = None if store.labels is None else store.labels[chosen].to(device)
        told = None
        if conditions is not None:
            told = {key: part.to(device) for key, part in conditions.cond(chosen).items()}
        return cls(x_0.to(device), labels, noise.to(device), told)


@dataclass(frozen=True)
class LevelErrors:
    """Measures a denoiser on fixed images of the splits of its data set."""

    splits: Mapping[str, FixedImages]  # train, and heldout where there is such a split
    null_label: int | None
    batch_size: int

    @torch.inference_mode()
    def __call__(self, denoiser: Denoiser) -> dict[str, float]:
        """v_error_SPLIT, the mean over all levels, and v_error_SPLIT_at_LEVEL, LEVEL being the log-SNR. Of a learned
        sigma also sigma_at_LEVEL: where its logarithm lies between those of beta tilde (0) and beta (1), on the last of
        the splits."""
        values: dict[str, float] = {}
        at = _rows_at_levels(denoiser.schedule)
        for split, images in self.splits.items():
            number = torch.arange(len(images.x_0), device=images.x_0.device) % len(at)
            errors, places = self._measured(denoiser, images, torch.tensor([*at.values()]).to(number.device)[number])
            values[f"v_error_{split}"] = float(errors.mean())
            for index, level in enumerate(at):
                values[f"v_error_{split}_at_{level:+d}"] = float(errors[number == index].mean())
                if places is not None:
                    values[f"sigma_at_{level:+d}"] = float(places[number == index].mean())
        return values

    def _measured(self, denoiser: Denoiser, images: FixedImages, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Each image's error at its t, (N,), and the place of its sigma."""
        errors, places = [], []
        for rows in torch.arange(len(t), device=t.device).split(self.batch_size):
            labels = None if images.labels is None else images.labels[rows]
            cond = conditioning(labels, torch.zeros_like(rows, dtype=torch.bool), self.null_label)
            if images.conditions is not None:
                cond = {**(cond or {}), **{key: part[rows] for key, part in images.conditions.items()}}
            x_0, level = images.x_0[rows], denoiser.schedule.level(t[rows])
            denoised = denoiser(diffuse(x_0, images.noise[rows], level), t[rows], cond)
            errors.append((level.snr + 1) * mean_flat((denoised.x_0 - x_0) ** 2))
            if denoiser.variance.learned:
                places.append(_place_of_sigma(denoiser, denoised, t[rows]))
        return torch.cat(errors), torch.cat(places) if places else None


def _rows_at_levels(schedule: NoiseSchedule) -> dict[int, int]:
    """LOG_SNR -> t, the row nearest to it, for those within the schedule."""
    wanted = torch.tensor(LOG_SNRS, dtype=torch.float64)
    t = schedule.time_of(wanted).round().clamp(min=min(2, schedule.num_timesteps))  # t = 1 has no beta tilde
    off = (schedule.level(t).log_snr - wanted).abs()
    near = {level: int(row) for level, row, far in zip(LOG_SNRS, t, off, strict=True) if float(far) < 1}
    return near or {LOG_SNRS[int(off.argmin())]: int(t[off.argmin()])}


def _place_of_sigma(denoiser: Denoiser, denoised: Denoised, t: Tensor) -> Tensor:
    """(B,) the mean of (log sigma² - log beta tilde) / (log beta - log beta tilde)."""
    level_t, level_s = denoiser.schedule.level(t), denoiser.schedule.level(t - 1)
    floor = variance_floor(denoiser.schedule)
    low, high = (bound(None, level_t, level_s, floor) for bound in (FixedSmall(), FixedLarge()))
    found = expand_log_variance(denoiser.variance(denoised.raw, level_t, level_s, floor), denoised.x_0)
    return mean_flat((found - expand(low, found)) / expand(high - low, found))
