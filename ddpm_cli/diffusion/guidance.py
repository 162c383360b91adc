"""Guidance: wrappers of the denoiser, with its call, that push the estimate of x_0 away from a weaker one."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddpm_cli.diffusion.denoiser import Cond, Denoise, Denoised
from ddpm_cli.diffusion.prediction import Prediction
from ddpm_cli.diffusion.schedule import NoiseSchedule

Pair = Callable[[Tensor, Tensor, Cond], tuple[Denoised, Tensor]]  # the estimate, and the weaker one's x_0


@dataclass(frozen=True)
class APG:
    """Adaptive projected guidance (Sadat et al. 2024b, Algorithm 1): what of the update, estimate - weaker, is gone by.

    parallel: eta, the share that is kept of its part along the estimate, which in the paper is what saturates images.
    max_norm: r, the longest update of an image, over all its numbers; None: any. momentum: beta in [-1, 0]: the update
    is that of this step plus beta times the one of the step before, so that below 0 a walk does not repeat itself.
    """

    parallel: float = 1.0
    max_norm: float | None = None
    momentum: float = 0.0

    def __call__(self, update: Tensor, estimate: Tensor) -> Tensor:
        """The update (B, ...) bounded, and then without some of its part along the estimate; image by image."""
        dims = tuple(range(1, update.ndim))
        if self.max_norm is not None:
            norm = update.square().sum(dims, keepdim=True).sqrt()
            update = update * (self.max_norm / norm.clamp(min=1e-8)).clamp(max=1.0)
        if self.parallel == 1.0:
            return update
        along = (update * estimate).sum(dims, keepdim=True) / estimate.square().sum(dims, keepdim=True).clamp(min=1e-8)
        return update - (1 - self.parallel) * along * estimate


class Momentum:
    """The running sum of a walk's updates, new + beta sum; begun anew where t rises, as of another walk."""

    def __init__(self, beta: float):
        self.beta = beta
        self._before: tuple[float, Tensor] | None = None

    def __call__(self, update: Tensor, t: float) -> Tensor:
        if self._before is not None and t <= self._before[0]:
            update = update + self.beta * self._before[1]
        self._before = t, update
        return update


@dataclass(frozen=True)
class Guidance:
    """How far to go: weaker + scale (estimate - weaker), so that 1 is off (Ho and Salimans 2022, Eq. 6, with scale =
    1 + w).

    interval: only where sigma/alpha lies in (low, high] (Kynkäänniemi et al. 2024); outside it the weaker estimate is
    not even made. rescale: how far the network's output is brought back, image by image, to the standard deviation it
    had without guidance, 0 to 1 (Lin et al. 2023, Section 3.4; 0.7 in the paper). apg: what of the update is used.
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    apg: APG = field(default_factory=APG)

    def __post_init__(self) -> None:
        if self.interval is not None and not self.interval[0] < self.interval[1]:
            raise ValueError(f"guidance.interval must rise, e.g. [0.3, 5], got {[*self.interval]}")

    def acts_at(self, t: Tensor, schedule: NoiseSchedule) -> bool:
        if self.interval is None:
            return True
        level = schedule.level(t)
        low, high = self.interval
        return low * float(level.alpha) < float(level.sigma) <= high * float(level.alpha)


def classifier_free(denoise: Denoise, null_label: int) -> Pair:
    """With the labels and with the null label instead, both in one batch (Ho and Salimans 2022)."""

    def pair(x_t: Tensor, t: Tensor, cond: Cond) -> tuple[Denoised, Tensor]:
        if cond is None or "labels" not in cond:
            raise ValueError("guidance.scale needs a class-conditional model; leave it at 1")
        null = {**cond, "labels": torch.full_like(cond["labels"], null_label)}
        both = {key: torch.cat([cond[key], null[key]]) for key in cond}
        t_both = t if t.ndim == 0 else torch.cat([t, t])
        denoised = denoise(torch.cat([x_t, x_t]), t_both, both)
        with_label, without = denoised.x_0.chunk(2)
        return Denoised(with_label, None if denoised.raw is None else denoised.raw.chunk(2)[0]), without

    return pair


def by_weaker_model(denoise: Denoise, guide: Denoise) -> Pair:
    """By a less trained or smaller model of the same data and schedule (autoguidance: Karras et al. 2024)."""
    return lambda x_t, t, cond: (denoise(x_t, t, cond), guide(x_t, t, cond).x_0)


def guided(
    denoise: Denoise, pair: Pair, guidance: Guidance, schedule: NoiseSchedule, prediction: Prediction
) -> Denoise:
    """The denoiser guided by `pair`; with its own variance output. prediction: what the network's output is, for
    rescale. t: 0-dim. With momentum it is of one walk, as it remembers."""
    if guidance.scale == 1.0:
        return denoise
    scale, apg, momentum = guidance.scale, guidance.apg, Momentum(guidance.apg.momentum)

    def denoise_guided(x_t: Tensor, t: Tensor, cond: Cond = None) -> Denoised:
        if not guidance.acts_at(t, schedule):
            return denoise(x_t, t, cond)
        estimate, weaker = pair(x_t, t, cond)
        x_0 = torch.lerp(weaker, estimate.x_0, scale)
        if apg != APG():
            update = estimate.x_0 - weaker
            update = momentum(update, float(t)) if apg.momentum else update
            x_0 = estimate.x_0 + (scale - 1) * apg(update, estimate.x_0)
        if guidance.rescale:
            c_skip, c_out, _ = (float(c) for c in prediction(schedule.level(t), schedule.level((t - 1).clamp(min=0))))
            output, unguided = ((x - c_skip * x_t) / c_out for x in (x_0, estimate.x_0))
            x_0 = c_skip * x_t + c_out * rescaled(output, unguided, guidance.rescale)
        return Denoised(x_0, estimate.raw)

    return denoise_guided


def rescaled(output: Tensor, unguided: Tensor, share: float) -> Tensor:
    """output (B, ...) with each image's standard deviation brought `share` of the way back to that of `unguided`."""
    dims = tuple(range(1, output.ndim))
    factor = unguided.std(dims, keepdim=True) / output.std(dims, keepdim=True).clamp(min=1e-8)
    return output * torch.lerp(torch.ones_like(factor), factor, share)


@dataclass(frozen=True)
class CADS:
    """Condition-annealed sampling (Sadat et al. 2024, Algorithm 1): noise on the class embedding that fades as the
    image forms, for more diverse images of a class.

    With u = t/T the embedding is sqrt(gamma) y + noise sqrt(1 - gamma) n, gamma falling from 1 at u <= start to 0 at
    u >= end; mixing: how far it gets y's mean and standard deviation back.
    """

    noise: float = 0.25
    start: float = 0.6
    end: float = 0.9
    mixing: float = 1.0

    def __post_init__(self) -> None:
        if not self.start <= self.end:
            raise ValueError(f"guidance.cads.start={self.start} must not exceed guidance.cads.end={self.end}")

    def gamma(self, u: float) -> float:
        if u <= self.start:
            return 1.0
        return 0.0 if u >= self.end else (self.end - u) / (self.end - self.start)

    def __call__(self, y: Tensor, n: Tensor, gamma: float) -> Tensor:
        """y, n: (B, E), n standard normal -> the annealed embedding."""
        noisy = gamma**0.5 * y + self.noise * (1 - gamma) ** 0.5 * n
        mean, std = noisy.mean(1, keepdim=True), noisy.std(1, keepdim=True).clamp(min=1e-8)
        restored = (noisy - mean) / std * y.std(1, keepdim=True) + y.mean(1, keepdim=True)
        return torch.lerp(noisy, restored, self.mixing)


def annealed(
    denoise: Denoise,
    cads: CADS,
    embed: Callable[[Tensor], Tensor],
    draw: Callable[[int, int], Tensor],
    num_timesteps: int,
    null_label: int,
) -> Denoise:
    """The denoiser with CADS on the embedding of its labels, null labels left alone; to be guided, not guiding.

    embed: labels -> (B, E), as the network's. draw(t, E): the batch's standard normal (B, E) of time t, in steps of
    1/1000 of a timestep.
    """

    def denoise_annealed(x_t: Tensor, t: Tensor, cond: Cond = None) -> Denoised:
        gamma = cads.gamma(float(t) / num_timesteps)
        if gamma == 1.0 or cond is None or "labels" not in cond:
            return denoise(x_t, t, cond)
        labels = cond["labels"]
        y = embed(labels)
        n = draw(round(1000 * float(t)), y.shape[1]).to(y)
        n = n.repeat(len(labels) // len(n), 1)  # with the null labels in the same batch, after the others
        y = torch.where((labels == null_label)[:, None], y, cads(y, n, gamma))
        return denoise(x_t, t, {**cond, "embedding": y})

    return denoise_annealed
