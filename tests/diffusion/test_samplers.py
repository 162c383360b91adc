"""An exact denoiser (data N(mean, std²)) must give back its data through every sampler."""

import pytest
import torch
from doubles import exact_gaussian, exact_mixture

from ddpm_cli.diffusion import samplers, schedule, variance
from ddpm_cli.diffusion.denoiser import Denoised

MEAN, STD, COUNT = 0.3, 0.5, 20_000
SCHEDULES = {"linear": schedule.linear(), "cosine": schedule.cosine()}


def noise_source(shape, seed=0):
    def noise(i):
        return torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + i), dtype=torch.float64)

    return noise


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    "sampler,sigma",
    [
        (samplers.Ancestral(), variance.FixedSmall()),
        (samplers.Ancestral(), variance.FixedLarge()),
        (samplers.Ancestral(250), variance.FixedLarge()),
        (samplers.DDIM(200), None),
        (samplers.DDIM(200, spacing="linspace"), None),
        (samplers.DDIM(400, eta=1.0), None),
        (samplers.DPMSolverPP(40), None),
    ],
    ids=lambda v: repr(v),
)
def test_exact_denoiser_gives_back_mean_and_std(name, sampler, sigma):
    noise_schedule, noise = SCHEDULES[name], noise_source((COUNT, 1))
    steps = sampler(exact_gaussian(noise_schedule, MEAN, STD), noise(-1), noise_schedule, sigma, noise)
    x = samplers.run(steps)
    assert abs(x.mean() - MEAN) < 0.015
    assert abs(x.std() / STD - 1) < 0.04


def test_ddim_of_eta_one_is_ancestral_with_the_posteriors_variance():
    noise_schedule, noise = schedule.cosine(), noise_source((64, 1))
    denoise = exact_gaussian(noise_schedule, MEAN, STD)
    ancestral = samplers.Ancestral(25)(denoise, noise(-1), noise_schedule, variance.FixedSmall(), noise)
    ddim = samplers.DDIM(25, eta=1.0)(denoise, noise(-1), noise_schedule, None, noise)
    torch.testing.assert_close(samplers.run(ddim), samplers.run(ancestral), rtol=1e-9, atol=1e-9)


def test_first_step_of_dpm_solver_is_ddim():
    noise_schedule, noise = schedule.linear(), noise_source((64, 1))
    denoise = exact_gaussian(noise_schedule, MEAN, STD)
    first = [
        next(s(denoise, noise(-1), noise_schedule, None, noise)).x
        for s in (samplers.DDIM(10), samplers.DPMSolverPP(10))
    ]
    torch.testing.assert_close(first[0], first[1], rtol=1e-9, atol=1e-9)


def test_learned_variance_of_images_is_used_pixel_by_pixel():
    noise_schedule = schedule.cosine(10)
    raw = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    raw[..., :2] = 1.0

    def denoise(x, t):
        return Denoised(torch.zeros_like(x), raw)

    noise = lambda i: torch.ones(2, 1, 4, 4, dtype=torch.float64)  # noqa: E731
    x = next(samplers.Ancestral()(denoise, torch.zeros_like(raw), noise_schedule, variance.LearnedRange(), noise)).x
    assert (x[..., 0] > x[..., 3]).all()  # beta is larger than the geometric middle


@pytest.mark.parametrize(
    "sampler",
    [samplers.Ancestral(5), samplers.DDIM(5), samplers.DDIM(1), samplers.DPMSolverPP(5), samplers.DPMSolverPP(1)],
)
def test_samplers_yield_every_step_and_end_at_the_estimate(sampler):
    noise_schedule, noise = schedule.cosine(100), noise_source((4, 1))
    steps = list(
        sampler(exact_gaussian(noise_schedule, MEAN, STD), noise(-1), noise_schedule, variance.FixedSmall(), noise)
    )
    assert [s.index for s in steps] == list(range(sampler.num_steps)) and steps[-1].t == 0
    torch.testing.assert_close(steps[-1].x, steps[-1].x_0, rtol=1e-9, atol=1e-9)
    assert len({step.x.data_ptr() for step in steps}) == len(steps)


@pytest.mark.parametrize("make", [samplers.Heun, samplers.DPM2, samplers.ChurnedHeun])
@pytest.mark.parametrize("spacing", ["trailing", "linspace", None, [1000, 900, 600, 300, 100, 0], [1000, 500, 0]])
@pytest.mark.parametrize("num_steps", [8, 18])
def test_a_first_step_far_too_long_is_left_uncorrected(make, spacing, num_steps):
    cosine, noise = schedule.cosine(), noise_source((500, 1))
    exact = exact_mixture(cosine)

    def imperfect(x, t):  # as a network, whose errors at two levels differ
        return Denoised(exact(x, t).x_0 + 0.1 * torch.sin(torch.as_tensor(t)))

    def first(sampler):
        return next(sampler(imperfect, noise(-1), cosine, None, noise)).x

    torch.testing.assert_close(first(make(num_steps, spacing)), first(samplers.DDIM(num_steps, spacing)))
    corrected = first(make(num_steps, "karras"))
    assert not torch.equal(corrected, first(samplers.DDIM(num_steps, "karras"))) and 0.9 < corrected.std() < 1.1
