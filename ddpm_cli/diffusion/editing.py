"""Editing real images with a trained denoiser: (denoise, sampler, schedule, variance, noise, source) -> SamplerSteps.

As a sampler's call, but from images instead of noise; denoise has its conditioning bound. Any sampler serves; those
that walk an image back to noise need one that draws none.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ddpm_cli.diffusion.gaussian import diffuse, step_forward
from ddpm_cli.diffusion.samplers import BoundDenoise, DDIMInversion, Sampler, SamplerStep, StepNoise, run
from ddpm_cli.diffusion.schedule import NoiseSchedule
from ddpm_cli.diffusion.variance import Variance

Steps = Iterator[SamplerStep]


@dataclass(frozen=True)
class Source:
    """What an edit starts from, in the model's range, a row for each image to be made."""

    image: Tensor  # (B, C, H, W)
    mask: Tensor | None = None  # (B, 1, H, W) bool, true where the image is to be made anew
    to: Tensor | None = None  # (B, C, H, W): where an interpolation leads
    share: Tensor | None = None  # (B,) in [0, 1]: how far along it


class Edit(Protocol):
    """What every edit offers; one that derives from it states what differs from these defaults."""

    inverts: bool = False  # walks the images to noise first: for samplers without noise, grids to t = 0, no clipping

    def __call__(
        self,
        denoise: BoundDenoise,
        sampler: Sampler,
        schedule: NoiseSchedule,
        variance: Variance,
        noise: StepNoise,
        source: Source,
    ) -> Steps: ...


def refuse_noise(sampler: Sampler, edit: str) -> None:
    """ValueError unless the sampler is deterministic, so that DDIM's inversion leads to where it starts."""
    if not sampler.deterministic:
        raise ValueError(f"edit={edit} needs a sampler without noise; choose sampler=ddim sampler.eta=0")


@dataclass(frozen=True)
class Inpaint(Edit):
    """RePaint (Lugmayr et al. 2022, Algorithm 1 and appendix B): what is known is put in, noised to each step's level.
    Every `jump_length` steps the image is noised back to where they began and they are walked again, `resample` times
    in all, so that what is made anew can agree with what is known. At the end the known pixels are the image's own.

    What is made anew agrees in part only: of two pixels of correlation 0.8, where the other should have the mean 0.48,
    it has 0.43 to 0.46 with 50 or 100 steps made 10 times, 0.20 to 0.29 made once. Jumps of up to a tenth of the walk
    (10 of 250 steps in the paper) do as well, longer ones worse.
    """

    resample: int = 10
    jump_length: int = 1

    def __call__(self, denoise, sampler, schedule: NoiseSchedule, variance, noise, source: Source) -> Steps:
        assert source.mask is not None
        times = sampler.times(schedule).tolist()
        steps = [sampler.along(times[i : i + 2], len(times) - 1) for i in range(len(times) - 1)]
        steps[0](denoise, source.image, schedule, variance, noise)  # refuses now what it cannot do
        return self._walk(denoise, steps, schedule, variance, noise, source.image, source.mask)

    def _walk(self, denoise, steps, schedule: NoiseSchedule, variance, noise: StepNoise, image: Tensor, mask: Tensor):
        x, n = schedule.prior(noise(-1)), 0
        for first in range(0, len(steps), self.jump_length):
            jump = steps[first : first + self.jump_length]
            start, end = schedule.level(jump[0].spacing[0]), schedule.level(jump[-1].spacing[1])
            # The last step alone has nothing to agree with: the clean image is the estimate.
            repeats = 1 if len(jump) == 1 and jump[0] is steps[-1] else self.resample
            for repeat in range(repeats):
                for i, step in enumerate(jump, first):
                    made = next(step(denoise, x, schedule, variance, lambda _, n=n: noise(3 * n)))
                    level = schedule.level(step.spacing[1])
                    known = image if step is steps[-1] else diffuse(image, noise(3 * n + 1), level)
                    x = torch.where(mask, made.x, known)
                    n += 1
                    if repeat + 1 == repeats:
                        yield SamplerStep(i, float(step.spacing[1]), x, made.x_0)
                if repeat + 1 < repeats:
                    x = step_forward(x, noise(3 * n - 1), start, end)


@dataclass(frozen=True)
class SDEdit(Edit):
    """SDEdit (Meng et al. 2022): the image is noised to the time strength T and drawn again from there, on the rest of
    the sampler's grid. strength 1 keeps next to nothing; different noise gives variations of one image."""

    strength: float = 0.5

    def __call__(self, denoise, sampler, schedule: NoiseSchedule, variance, noise, source: Source) -> Steps:
        times = sampler.times(schedule).tolist()
        rest = [t for t in times if t <= self.strength * schedule.num_timesteps]
        if len(rest) < 2:
            raise ValueError(
                f"edit.strength={self.strength} leaves no step of {len(times) - 1}; raise it or sampler.num_steps"
            )
        x_t = diffuse(source.image, noise(-1), schedule.level(rest[0]))
        return sampler.along(rest, len(times) - 1)(denoise, x_t, schedule, variance, noise)


@dataclass(frozen=True)
class Reconstruct(Edit):
    """The image walked to noise by DDIM's inversion and back by the sampler (Song, Meng and Ermon 2020, Section 5.4):
    how well the model knows it."""

    inverts = True

    def __call__(self, denoise, sampler, schedule: NoiseSchedule, variance, noise, source: Source) -> Steps:
        refuse_noise(sampler, "reconstruct")
        inversion = DDIMInversion(sampler.num_steps, sampler.spacing_on(schedule), rho=sampler.rho)
        up = inversion(denoise, source.image, schedule)
        return self._walk(up, lambda x_T: sampler(denoise, x_T, schedule, variance, noise))

    def _walk(self, up: Iterator[SamplerStep], down) -> Iterator[SamplerStep]:
        for risen in up:
            yield risen
        for step in down(risen.x):
            yield replace(step, index=risen.index + 1 + step.index)


@dataclass(frozen=True)
class Interpolate(Edit):
    """Between two real images: both walked to noise, the noise interpolated on the sphere, and drawn by the sampler
    (Song, Meng and Ermon 2020, Section 5.3)."""

    frames: int = 9  # images from the one to the other, both counted

    inverts = True

    def __call__(self, denoise, sampler, schedule: NoiseSchedule, variance, noise, source: Source) -> Steps:
        refuse_noise(sampler, "interpolate")
        assert source.to is not None and source.share is not None
        inversion = DDIMInversion(sampler.num_steps, sampler.spacing_on(schedule), rho=sampler.rho)
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
