"""Editing real images with a trained denoiser: (denoise, sampler, schedule, variance, noise, source) -> SamplerSteps.

As a sampler's call, but from images instead of noise; denoise has its conditioning bound. Any sampler serves; those
that walk an image back to noise need one that draws none.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddpm_cli.diffusion.gaussian import diffuse, step_forward
from ddpm_cli.diffusion.samplers import BoundDenoise, DDIMInversion, SamplerStep, StepNoise, run
from ddpm_cli.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True)
class Source:
    """What an edit starts from, in the model's range, a row for each image to be made."""

    image: Tensor  # (B, C, H, W)
    mask: Tensor | None = None  # (B, 1, H, W) bool, true where the image is to be made anew
    to: Tensor | None = None  # (B, C, H, W): where an interpolation leads
    share: Tensor | None = None  # (B,) in [0, 1]: how far along it


def along(sampler, times: list[float], num_steps: int):
    """The sampler on `times`, a part of its own grid of `num_steps` steps; one that looks back begins anew there."""
    changes = {"num_steps": None, "spacing": times}
    if hasattr(sampler, "s_churn"):  # is shared out over the steps of a walk
        changes["s_churn"] = sampler.s_churn * (len(times) - 1) / num_steps
    return replace(sampler, **changes)


def refuse_noise(sampler, edit: str) -> None:
    """ValueError unless the sampler is deterministic, so that DDIM's inversion leads to where it starts."""
    if not getattr(sampler, "deterministic", False):
        raise ValueError(f"edit={edit} needs a sampler without noise; choose sampler=ddim sampler.eta=0")


@dataclass(frozen=True)
class Inpaint:
    """RePaint (Lugmayr et al. 2022, Algorithm 1, jumps of one step): what is known is put in, noised to each step's
    level, and each step is repeated `resample` times, so that what is made anew can agree with it. At the end the known
    pixels are the image's own."""

    resample: int = 10

    def __call__(
        self, denoise: BoundDenoise, sampler, schedule: NoiseSchedule, variance, noise: StepNoise, source: Source
    ) -> Iterator[SamplerStep]:
        assert source.mask is not None
        times = schedule.times(sampler.num_steps, sampler.spacing).tolist()
        steps = [along(sampler, times[i : i + 2], len(times) - 1) for i in range(len(times) - 1)]
        steps[0](denoise, source.image, schedule, variance, noise)  # refuses now what it cannot do
        return self._walk(denoise, steps, schedule, variance, noise, source.image, source.mask)

    def _walk(self, denoise, steps, schedule: NoiseSchedule, variance, noise: StepNoise, image: Tensor, mask: Tensor):
        x = schedule.prior(noise(-1))
        for i, step in enumerate(steps):
            level_t, level_s = (schedule.level(t) for t in step.spacing)
            last = i == len(steps) - 1
            for n in range(i * self.resample, (i + 1) * self.resample):  # three draws for each n
                made = next(step(denoise, x, schedule, variance, lambda _, n=n: noise(3 * n)))
                known = image if last else diffuse(image, noise(3 * n + 1), level_s)
                x = torch.where(mask, made.x, known)
                if last:
                    break  # nothing to agree with: the clean image is the estimate
                if n + 1 < (i + 1) * self.resample:
                    x = step_forward(x, noise(3 * n + 2), level_t, level_s)
            yield SamplerStep(i, float(step.spacing[1]), x, made.x_0)


@dataclass(frozen=True)
class SDEdit:
    """SDEdit (Meng et al. 2022): the image is noised to the time strength T and drawn again from there, on the rest of
    the sampler's grid. strength 1 keeps next to nothing; different noise gives variations of one image."""

    strength: float = 0.5

    def __call__(
        self, denoise: BoundDenoise, sampler, schedule: NoiseSchedule, variance, noise: StepNoise, source: Source
    ) -> Iterator[SamplerStep]:
        times = schedule.times(sampler.num_steps, sampler.spacing).tolist()
        rest = [t for t in times if t <= self.strength * schedule.num_timesteps]
        if len(rest) < 2:
            raise ValueError(
                f"edit.strength={self.strength} leaves no step of {len(times) - 1}; raise it or sampler.num_steps"
            )
        x_t = diffuse(source.image, noise(-1), schedule.level(rest[0]))
        return along(sampler, rest, len(times) - 1)(denoise, x_t, schedule, variance, noise)


@dataclass(frozen=True)
class Reconstruct:
    """The image walked to noise by DDIM's inversion and back by the sampler (Song, Meng and Ermon 2020, Section 5.4):
    how well the model knows it."""

    inverts = True

    def __call__(
        self, denoise: BoundDenoise, sampler, schedule: NoiseSchedule, variance, noise: StepNoise, source: Source
    ) -> Iterator[SamplerStep]:
        refuse_noise(sampler, "reconstruct")
        inversion = DDIMInversion(sampler.num_steps, sampler.spacing)
        return self._walk(
            inversion(denoise, source.image, schedule),
            lambda x_T: sampler(denoise, x_T, schedule, variance, noise),
        )

    def _walk(self, up: Iterator[SamplerStep], down) -> Iterator[SamplerStep]:
        for risen in up:
            yield risen
        for step in down(risen.x):
            yield replace(step, index=risen.index + 1 + step.index)


@dataclass(frozen=True)
class Interpolate:
    """Between two real images: both walked to noise, the noise interpolated on the sphere, and drawn by the sampler
    (Song, Meng and Ermon 2020, Section 5.3)."""

    frames: int = 9  # images from the one to the other, both counted

    inverts = True

    def __call__(
        self, denoise: BoundDenoise, sampler, schedule: NoiseSchedule, variance, noise: StepNoise, source: Source
    ) -> Iterator[SamplerStep]:
        refuse_noise(sampler, "interpolate")
        assert source.to is not None and source.share is not None
        inversion = DDIMInversion(sampler.num_steps, sampler.spacing)
        here, there = (run(inversion(denoise, image, schedule)) for image in (source.image, source.to))
        return sampler(denoise, slerp(here, there, source.share), schedule, variance, noise)


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Each row of a and b (B, ...) mixed along the great circle through them, share (B,) of the way to b: noise stays
    as long as noise is. Nearly parallel rows are mixed linearly."""
    rows_a, rows_b = a.flatten(1).double(), b.flatten(1).double()
    cosine = torch.nn.functional.cosine_similarity(rows_a, rows_b).clamp(-1, 1)
    angle, u = cosine.acos(), share.to(rows_a)
    straight = angle.sin() < 1e-6
    sine = torch.where(straight, 1.0, angle.sin())
    weight_a = torch.where(straight, 1 - u, ((1 - u) * angle).sin() / sine)
    weight_b = torch.where(straight, u, (u * angle).sin() / sine)
    return (weight_a[:, None] * rows_a + weight_b[:, None] * rows_b).to(a.dtype).reshape(a.shape)
