"""Likelihoods of a denoiser that is exact for Gaussian data, whose density is known."""

import math

import pytest
import torch
from doubles import exact_gaussian

from ddpm_cli.diffusion import likelihood, schedule, variance
from ddpm_cli.diffusion.denoiser import Denoised

MEAN, STD = 0.1, 0.5
SCHEDULES = {
    "linear": schedule.linear(),
    "cosine": schedule.cosine(),
    "zero": schedule.zero_terminal_snr(schedule.cosine()),
    "edm": schedule.edm(),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count, seed=0):
    """8-bit images of which each pixel is Gaussian, (count, 1, 4, 4)."""
    x = (MEAN + STD * torch.randn(count, 1, 4, 4, generator=seeded(seed), dtype=torch.float64)).clamp(-1, 1)
    return ((x + 1) * 127.5).round() / 127.5 - 1


def true_log_density(x, std=STD):
    return (-0.5 * ((x - MEAN) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ode_gives_the_true_density_of_gaussian_data(name):
    noise_schedule = SCHEDULES[name]
    x = MEAN + STD * torch.randn(16, 1, 4, 4, generator=seeded(), dtype=torch.float64)
    probe = torch.randint(0, 2, x.shape, generator=seeded(1)).double() * 2 - 1
    ours = likelihood.ode_log_density(exact_gaussian(noise_schedule, MEAN, STD), x, noise_schedule, probe)
    assert ((ours - true_log_density(x)) / (16 * math.log(2))).abs().max() < 1e-3


def test_ode_likelihood_is_that_of_the_images_bin():
    x_0, noise_schedule = images(64), schedule.edm()
    bits = likelihood.ode_likelihood(
        exact_gaussian(noise_schedule, MEAN, STD), x_0, noise_schedule, generator=seeded(2)
    )
    half = 1 / 255
    normal = torch.distributions.Normal(MEAN, STD)
    exact = -(normal.cdf(x_0 + half) - normal.cdf(x_0 - half)).log2().flatten(1).mean(1)
    torch.testing.assert_close(bits, exact, rtol=0, atol=1e-2)  # one draw of the place in the bin
    assert float(bits.mean()) == pytest.approx(float(exact.mean()), abs=1e-3)


def test_hutchinsons_estimate_is_unbiased_where_pixels_depend_on_each_other():
    noise_schedule, covariance = schedule.cosine(), torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64)

    def denoise(x, t):  # exact for N(0, covariance)
        level = noise_schedule.level(t)
        total = level.alpha**2 * covariance + level.sigma**2 * torch.eye(2)
        return Denoised(x @ torch.linalg.solve(total, level.alpha * covariance))

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
    estimate = likelihood.estimated_bound(denoise, x_0, noise_schedule, sigma, generator=seeded(4))
    assert 0 < estimate.standard_error < 0.1
    assert abs(estimate.mean - float(full.total.mean())) < 3 * estimate.standard_error


def test_standard_error_is_the_spread_of_repeated_estimates():
    noise_schedule, x_0 = schedule.cosine(200), images(32)
    denoise = exact_gaussian(noise_schedule, MEAN, 0.3)
    estimates = [
        likelihood.estimated_bound(
            denoise, x_0, noise_schedule, variance.FixedSmall(), generator=seeded(i), num_strata=10
        )
        for i in range(60)
    ]
    spread = torch.tensor([estimate.mean for estimate in estimates]).std()
    stated = torch.tensor([estimate.standard_error for estimate in estimates]).square().mean().sqrt()
    assert float(spread / stated) == pytest.approx(1, abs=0.3)


def test_bound_is_above_the_odes_likelihood_and_near_it():
    noise_schedule, x_0 = schedule.cosine(), images(64)
    denoise = exact_gaussian(noise_schedule, MEAN, STD)
    bound = likelihood.estimated_bound(denoise, x_0, noise_schedule, variance.FixedLarge(), generator=seeded(5))
    for ode in (likelihood.ode_likelihood, likelihood.ode_likelihood_by_decoder):
        bits = ode(denoise, x_0, noise_schedule, generator=seeded(6))
        assert -3 * bound.standard_error < bound.mean - float(bits.mean()) < 0.2


def test_the_decoder_does_not_charge_data_on_few_values_for_the_noise_of_the_first_step():
    noise_schedule, x_0 = schedule.cosine(), torch.full((8, 1, 4, 4), 1 / 255, dtype=torch.float64)
    denoise = exact_gaussian(noise_schedule, 1 / 255, 1e-6)  # all data in one place: nothing to tell
    args = denoise, x_0, noise_schedule
    assert likelihood.ode_likelihood(*args, generator=seeded()).mean() > 0.9
    sigma = variance.Analytic({"log_snr": torch.tensor([10.0, -10.0]), "noise_error": torch.zeros(2)})
    bits = likelihood.ode_likelihood_by_decoder(*args, generator=seeded(), variance=sigma)
    assert bits.abs().max() < 0.05


def test_one_replicate_is_refused():
    with pytest.raises(ValueError, match="replicates must be at least 2"):
        likelihood.estimated_bound(None, images(1), schedule.cosine(), None, generator=seeded(), replicates=1)
