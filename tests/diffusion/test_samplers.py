"""An exact denoiser (data N(mean, std²)) must give back its data through every sampler."""

from itertools import pairwise

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
        for s in (samplers.DDIM(10, "log_snr"), samplers.DPMSolverPP(10, "log_snr"))
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
@pytest.mark.parametrize("spacing", ["trailing", "linspace", [1000, 900, 600, 300, 100, 0], [1000, 500, 0]])
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


# k-diffusion's published loops, written out


def published_heun(denoise, x, sigmas):
    for now, after in pairwise(sigmas):
        d = (x - denoise(x, now)) / now
        ahead = x + (after - now) * d
        if after > 0:
            d = (d + (ahead - denoise(ahead, after)) / after) / 2
            ahead = x + (after - now) * d
        x = ahead
    return x


def published_dpm_2(denoise, x, sigmas):
    for now, after in pairwise(sigmas):
        d = (x - denoise(x, now)) / now
        if after > 0:
            middle = (now.log() + after.log()).div(2).exp()
            half = x + (middle - now) * d
            d = (half - denoise(half, middle)) / middle
        x = x + (after - now) * d
    return x


def published_3m_sde(denoise, x, sigmas, eta, draw):
    h_1 = h_2 = d_1 = d_2 = None
    for i, (now, after) in enumerate(pairwise(sigmas)):
        estimate = denoise(x, now)
        if after == 0:
            x = estimate
            continue
        h = now.log() - after.log()
        h_eta = h * (eta + 1)
        x = torch.exp(-h_eta) * x + (-h_eta).expm1().neg() * estimate
        phi_2 = h_eta.neg().expm1() / h_eta + 1
        if h_2 is not None:
            r_0, r_1 = h_1 / h, h_2 / h
            d1_0, d1_1 = (estimate - d_1) / r_0, (d_1 - d_2) / r_1
            first = d1_0 + (d1_0 - d1_1) * r_0 / (r_0 + r_1)
            x = x + phi_2 * first - (phi_2 / h_eta - 0.5) * (d1_0 - d1_1) / (r_0 + r_1)
        elif h_1 is not None:
            x = x + phi_2 * (estimate - d_1) / (h_1 / h)
        if eta:
            x = x + draw(i) * after * (-2 * h * eta).expm1().neg().sqrt()
        h_1, h_2, d_1, d_2 = h, h_1, estimate, d_1
    return x


PUBLISHED = {"heun": (samplers.Heun, published_heun), "dpm2": (samplers.DPM2, published_dpm_2)}


@pytest.mark.parametrize("num_steps", range(2, 41))
@pytest.mark.parametrize("name", PUBLISHED)
def test_with_every_correction_they_are_the_published_loops(name, num_steps):
    make, published = PUBLISHED[name]
    edm, noise = schedule.edm(), noise_source((64, 1))
    exact = exact_mixture(edm)

    def denoise(x, sigma):
        return exact(x, edm.time_of(-2 * sigma.log())).x_0

    sampler = make(num_steps, "karras", correct="always")
    ours = samplers.run(sampler(exact, edm.prior(noise(-1)), edm, None, None))
    theirs = published(denoise, edm.prior(noise(-1)), edm.level(sampler.times(edm)).sigma)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 4, 10, 25])
def test_dpm_solver_of_third_order_is_the_published_loop(num_steps, eta):
    edm, noise = schedule.edm(), noise_source((64, 1))
    exact = exact_mixture(edm)

    def denoise(x, sigma):
        return exact(x, edm.time_of(-2 * sigma.log())).x_0

    sampler = samplers.DPMSolverPPSDE(num_steps, "karras", eta=eta, order=3)
    ours = samplers.run(sampler(exact, edm.prior(noise(-1)), edm, None, noise))
    theirs = published_3m_sde(denoise, edm.prior(noise(-1)), edm.level(sampler.times(edm)).sigma, eta, noise)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", [samplers.Heun, samplers.DPM2])
@pytest.mark.parametrize("num_steps", [3, 4, 5, 7, 8])
def test_leaving_a_correction_out_never_errs_much_more_and_saves_where_always_fails(make, num_steps):
    cosine, noise = schedule.cosine(), noise_source((500, 1))
    exact = exact_mixture(cosine)
    truth = samplers.run(samplers.Heun(500, "log_snr")(exact, noise(-1), cosine, None, None))

    def error(correct):
        sampler = make(num_steps, "log_snr", correct=correct)
        return float((samplers.run(sampler(exact, noise(-1), cosine, None, None)) - truth).abs().mean())

    assert error("auto") < 1.25 * error("always")
    assert num_steps > 3 or error("auto") < 0.3 * error("always")


@pytest.mark.parametrize("make", [samplers.DPMSolverPP, samplers.DPMSolverPPSDE, samplers.UniPC])
def test_a_step_that_grows_more_than_twofold_is_of_first_order(make):
    linear, noise = schedule.linear(), noise_source((2000, 1))
    exact = exact_gaussian(linear, 0.0, 0.3)  # 20 leading steps end with one of eleven times the length
    std = float(samplers.run(make(20, "leading")(exact, noise(-1), linear, None, noise)).std())
    ddim = float(samplers.run(samplers.DDIM(20, "leading")(exact, noise(-1), linear, None, noise)).std())
    assert abs(std - 0.3) <= abs(ddim - 0.3) + 0.02


def test_laplace_keeps_detail_on_its_own_walk():
    laplace, noise = schedule.laplace(), noise_source((5000, 1))
    exact = exact_gaussian(laplace, 0.0, 0.1)
    std = float(samplers.run(samplers.DDIM(50)(exact, noise(-1), laplace, None, noise)).std())
    assert std == pytest.approx(0.1, rel=0.2)
