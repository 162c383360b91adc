"""Likelihoods of a denoiser that is exact for Gaussian data, whose density is known."""

import math

import pytest
import torch
from doubles import exact_gaussian, exact_mixture

from ddpm_cli.diffusion import likelihood, schedule, variance
from ddpm_cli.diffusion.denoiser import Denoised

MEAN, STD = 0.1, 0.5
SCHEDULES = {
    "linear": schedule.linear(),
    "cosine": schedule.cosine(),
    "zero": schedule.zero_terminal_snr(schedule.cosine()),
    "edm": schedule.edm(),
    "rectified_flow": schedule.rectified_flow(),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count, seed=0):
    """8-bit images of which each pixel is Gaussian, (count, 1, 4, 4)."""
    x = (MEAN + STD * torch.randn(count, 1, 4, 4, generator=seeded(seed), dtype=torch.float64)).clamp(-1, 1)
    return ((x + 1) * 127.5).round() / 127.5 - 1


def coins(x, seed=1):
    return torch.randint(0, 2, x.shape, generator=seeded(seed)).double() * 2 - 1


def by_ode(denoise, x_0, noise_schedule, seed=2, **more):
    u = torch.rand(x_0.shape, generator=seeded(seed), dtype=x_0.dtype)
    return likelihood.ode_likelihood(denoise, x_0, noise_schedule, u=u, probe=coins(x_0), **more)


def by_ode_and_decoder(denoise, x_0, noise_schedule, seed=2, **more):
    noise = torch.randn(x_0.shape, generator=seeded(seed), dtype=x_0.dtype)
    return likelihood.ode_likelihood_by_decoder(denoise, x_0, noise_schedule, noise=noise, probe=coins(x_0), **more)


def true_log_density(x, std=STD):
    return (-0.5 * ((x - MEAN) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ode_gives_the_true_density_of_gaussian_data(name):
    noise_schedule = SCHEDULES[name]
    x = MEAN + STD * torch.randn(16, 1, 4, 4, generator=seeded(), dtype=torch.float64)
    ours = likelihood.ode_log_density(exact_gaussian(noise_schedule, MEAN, STD), x, noise_schedule, coins(x))
    assert ((ours - true_log_density(x)) / (16 * math.log(2))).abs().max() < 1e-3


def test_ode_likelihood_is_that_of_the_images_bin():
    x_0, noise_schedule = images(64), schedule.edm()
    bits = by_ode(exact_gaussian(noise_schedule, MEAN, STD), x_0, noise_schedule).total
    half = 1 / 255
    normal = torch.distributions.Normal(MEAN, STD)
    exact = -(normal.cdf(x_0 + half) - normal.cdf(x_0 - half)).log2().flatten(1).mean(1)
    torch.testing.assert_close(bits, exact, rtol=0, atol=1e-2)  # one draw of the place in the bin
    assert float(bits.mean()) == pytest.approx(float(exact.mean()), abs=1e-3)


def test_hutchinsons_estimate_is_unbiased_where_pixels_depend_on_each_other():
    noise_schedule, covariance = schedule.cosine(), torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64)

    def denoise(x, t, cond):  # exact for N(0, covariance)
        level = noise_schedule.level(t)
        alpha, sigma = level.alpha[:, None, None], level.sigma[:, None, None]
        total = alpha**2 * covariance + sigma**2 * torch.eye(2)
        return Denoised((x[:, None] @ torch.linalg.solve(total, alpha * covariance))[:, 0])

    x = torch.tensor([[0.2, -0.5]], dtype=torch.float64)
    probes = [torch.tensor([[a, b]]).double() for a in (-1, 1) for b in (-1, 1)]
    estimates = torch.cat([likelihood.ode_log_density(denoise, x, noise_schedule, probe) for probe in probes])
    truth = torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance).log_prob(x)
    assert (estimates - truth).abs().min() > 0.05  # each is off, their mean is not
    torch.testing.assert_close(estimates.mean(), truth[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("count", [1, 5, 20, 100, 5000])
def test_strata_cover_every_time_once(count):
    for num_timesteps in (1, 2, 100, 4000):
        ranges = likelihood.strata(num_timesteps, count)
        assert [t for stratum in ranges for t in stratum] == list(range(1, num_timesteps + 1))
        assert len(ranges) <= count


@pytest.mark.parametrize("sigma", [variance.FixedSmall(), variance.FixedLarge()], ids=["small", "large"])
@pytest.mark.parametrize("name", ["linear", "cosine", "zero", "edm"])
def test_estimate_agrees_with_the_full_sum_within_three_standard_errors(name, sigma):
    noise_schedule, x_0 = SCHEDULES[name], images(64)
    denoise, draw = exact_gaussian(noise_schedule, MEAN, 0.3), seeded(3)  # not the true width: terms of some size
    full = likelihood.variational_bound(
        denoise, x_0, noise_schedule, sigma, lambda t: torch.randn(x_0.shape, generator=draw, dtype=torch.float64)
    )
    estimate = likelihood.estimated_bound(
        denoise, x_0, noise_schedule, sigma, draw=likelihood.drawn_from(seeded(4), x_0)
    )
    assert 0 < estimate.standard_error < 0.1
    assert abs(estimate.mean - float(full.total.mean())) < 3 * estimate.standard_error


def test_standard_error_is_the_spread_of_repeated_estimates():
    noise_schedule, x_0 = schedule.cosine(200), images(32)
    denoise = exact_gaussian(noise_schedule, MEAN, 0.3)
    draws, sigma = [likelihood.drawn_from(seeded(i), x_0) for i in range(60)], variance.FixedSmall()
    estimates = [
        likelihood.estimated_bound(denoise, x_0, noise_schedule, sigma, draw=draw, num_strata=10) for draw in draws
    ]
    spread = torch.tensor([estimate.mean for estimate in estimates]).std()
    stated = torch.tensor([estimate.standard_error for estimate in estimates]).square().mean().sqrt()
    assert float(spread / stated) == pytest.approx(1, abs=0.3)


def test_bound_is_above_the_odes_likelihood_and_near_it():
    noise_schedule, x_0 = schedule.cosine(), images(64)
    denoise = exact_gaussian(noise_schedule, MEAN, STD)
    bound = likelihood.estimated_bound(
        denoise, x_0, noise_schedule, variance.FixedLarge(), draw=likelihood.drawn_from(seeded(5), x_0)
    )
    for ode in (by_ode, by_ode_and_decoder):
        bits = ode(denoise, x_0, noise_schedule, seed=6).total
        assert -3 * bound.standard_error < bound.mean - float(bits.mean()) < 0.2


def test_the_decoder_does_not_charge_data_on_few_values_for_the_noise_of_the_first_step():
    noise_schedule, x_0 = schedule.cosine(), torch.full((8, 1, 4, 4), 1 / 255, dtype=torch.float64)
    denoise = exact_gaussian(noise_schedule, 1 / 255, 1e-6)  # all data in one place: nothing to tell
    args = denoise, x_0, noise_schedule
    assert by_ode(*args).total.mean() > 0.9
    sigma = variance.Analytic({"log_snr": torch.tensor([10.0, -10.0]), "noise_error": torch.zeros(2)})
    bits = by_ode_and_decoder(*args, variance=sigma).total
    assert bits.abs().max() < 0.05


def test_one_replicate_is_refused():
    with pytest.raises(ValueError, match="replicates must be at least 2"):
        likelihood.estimated_bound(None, images(1), schedule.cosine(), None, draw=None, replicates=1)


WEIGHTS, MEANS = torch.tensor([0.3, 0.5, 0.2]).double(), torch.tensor([-0.8, 0.2, 0.7]).double()


def mixture(stds, level=None):
    """The law of a number of x_0, or of x_t at a level."""
    alpha, sigma = (1.0, 0.0) if level is None else (float(level.alpha), float(level.sigma))
    wide = ((alpha * torch.tensor(stds).double()) ** 2 + sigma**2).sqrt()
    parts = torch.distributions.Normal(alpha * MEANS, wide)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(WEIGHTS), parts)


def exact(noise_schedule, stds):
    return exact_mixture(noise_schedule, WEIGHTS.tolist(), MEANS.tolist(), stds)


def test_the_odes_solver_finds_a_sharp_mixture_and_bounds_its_error_by_a_coarser_one():
    """With the cosine schedule of 4,000 steps, at which 400 passes equal in ln s erred by 0.13 nats at worst."""
    noise_schedule, stds, calls = schedule.cosine(4000), (0.02, 0.05, 0.1), []
    torch.manual_seed(0)
    x = mixture(stds).sample((128, 1, 1, 1))

    def denoise(x_t, t, cond):
        calls.append(len(x_t))
        return exact(noise_schedule, stds)(x_t, t)

    fine = likelihood.ode_log_density(denoise, x, noise_schedule, coins(x))
    passes = sum(calls) / len(x)
    coarse = likelihood.ode_log_density(denoise, x, noise_schedule, coins(x), tolerance=1e-4)
    off = (fine - mixture(stds, noise_schedule.level(1)).log_prob(x).flatten()).abs()
    assert off.max() < 1e-3 and off.mean() < 1e-4 and passes < 200
    assert off.mean() < (fine - coarse).abs().mean() < 2e-3


def test_no_image_of_the_ode_depends_on_its_neighbours():
    noise_schedule, stds = schedule.cosine(), (0.05, 0.05, 0.1)
    torch.manual_seed(0)
    x = mixture(stds).sample((6, 1, 2, 2))
    seen = torch.arange(6)

    def denoise(x_t, t, cond):
        assert set(cond["labels"].tolist()) <= set(seen.tolist())
        return exact(noise_schedule, stds)(x_t + 0.01 * cond["labels"].reshape(-1, 1, 1, 1), t)

    def found(rows):
        cond, probe = {"labels": seen[rows]}, coins(x)[rows]
        return likelihood.ode_log_density(denoise, x[rows], noise_schedule, probe, cond=cond)

    torch.testing.assert_close(torch.cat([found(slice(0, 1)), found(slice(1, 6))]), found(slice(0, 6)))


def measured_variance(noise_schedule, stds):
    """The best variance that is one number a step, by the exact denoiser's error (Bao et al. 2022)."""
    torch.manual_seed(1)
    x_0 = mixture(stds).sample((2000, 1))
    t = torch.linspace(1, noise_schedule.num_timesteps, 100).round()
    errors = []
    for level, time in ((noise_schedule.level(time), time) for time in t):
        x_t = level.alpha * x_0 + level.sigma * torch.randn_like(x_0)
        estimate = exact(noise_schedule, stds)(x_t, time.expand(len(x_0))).x_0
        errors.append(level.snr * (estimate - x_0).square().mean())
    return variance.Analytic({"log_snr": noise_schedule.level(t).log_snr, "noise_error": torch.stack(errors)})


@pytest.mark.parametrize("law", ["gaussian", "mixture"])
def test_bound_and_ode_are_equal_within_their_errors_where_the_reverse_steps_are_right(law):
    noise_schedule, stds = schedule.cosine(), (0.5, 0.5, 0.5) if law == "gaussian" else (0.05, 0.05, 0.1)
    if law == "gaussian":
        denoise, x_0 = exact_gaussian(noise_schedule, MEAN, STD), images(64)
        t = torch.linspace(1, 1000, 100)
        level = noise_schedule.level(t)
        error = level.snr * STD**2 * level.sigma**2 / (level.alpha**2 * STD**2 + level.sigma**2)
        sigma = variance.Analytic({"log_snr": level.log_snr, "noise_error": error})
    else:
        torch.manual_seed(0)
        denoise, x_0 = exact(noise_schedule, stds), mixture(stds).sample((64, 1, 4, 4)).clamp(-1, 1)
        x_0 = ((x_0 + 1) * 127.5).round() / 127.5 - 1
        sigma = measured_variance(noise_schedule, stds)
    draw = likelihood.drawn_from(seeded(5), x_0)
    bound = likelihood.estimated_bound(denoise, x_0, noise_schedule, sigma, draw=draw, replicates=4)
    ode = by_ode(denoise, x_0, noise_schedule).total
    gap = bound.total - ode
    assert abs(float(gap.mean())) < 3 * float(gap.std()) / 8
    assert bound.standard_error < 0.05
