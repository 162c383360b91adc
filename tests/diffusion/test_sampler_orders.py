"""Convergence towards the exact solution, by the exact denoiser of a Gaussian mixture in float64."""

import pytest
import torch
from doubles import exact_mixture

from ddpm_cli.diffusion import samplers, schedule

SCHEDULES = {"linear": schedule.linear(), "edm": schedule.edm(), "rectified_flow": schedule.rectified_flow()}
COUNTS = [20, 40, 80, 160]
NOISE = torch.linspace(-2, 2, 201, dtype=torch.float64)


def end_of(sampler, noise_schedule):
    return samplers.run(sampler(exact_mixture(noise_schedule), noise_schedule.prior(NOISE), noise_schedule, None, None))


@pytest.fixture(scope="module", params=SCHEDULES)
def case(request):
    noise_schedule = SCHEDULES[request.param]
    return noise_schedule, end_of(samplers.Heun(2000, "log_snr_to_1"), noise_schedule)


def order_of(make, case):
    """The slope of log error over log steps, by least squares."""
    noise_schedule, exact = case
    errors = [(end_of(make(count), noise_schedule) - exact).abs().mean() for count in COUNTS]
    x, y = torch.tensor(COUNTS).double().log(), torch.stack(errors).log()
    return -float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


@pytest.mark.parametrize(
    ("make", "order", "tolerance"),
    [
        (lambda n: samplers.Euler(n, "log_snr_to_1"), 1, 0.2),
        (lambda n: samplers.DDIM(n, "log_snr_to_1"), 1, 0.2),
        (lambda n: samplers.Heun(n, "log_snr_to_1"), 2, 0.3),
        (lambda n: samplers.DPM2(n, "log_snr_to_1"), 2, 0.3),
        (lambda n: samplers.DPMSolverPP(n, "log_snr_to_1"), 2, 0.3),
        (lambda n: samplers.DPMSolverPP(n, "log_snr_to_1", order=3), 2, 0.6),
        (lambda n: samplers.DPMSolverPPSDE(n, "log_snr_to_1", eta=0.0, order=3), 2, 0.6),
        (lambda n: samplers.GradientEstimation(n, "log_snr_to_1"), 0.7, 0.3),
        (lambda n: samplers.GradientEstimation(n, "log_snr_to_1", gamma=1.5), 2, 0.3),
        (lambda n: samplers.UniPC(n, "log_snr_to_1", order=1), 2, 0.3),
        (lambda n: samplers.UniPC(n, "log_snr_to_1", order=2), 3, 0.6),
    ],
    ids=["euler", "ddim", "heun", "dpm2", "dpmpp", "3m", "3m_sde", "gradient", "gradient 1.5", "unipc1", "unipc2"],
)
def test_samplers_converge_with_their_order(case, make, order, tolerance):
    assert abs(order_of(make, case) - order) <= tolerance


def test_twenty_steps_of_dpm_solver_beat_a_hundred_of_ddim():
    noise_schedule = SCHEDULES["linear"]
    exact = end_of(samplers.Heun(2000, "log_snr"), noise_schedule)
    few = (end_of(samplers.DPMSolverPP(20, "log_snr"), noise_schedule) - exact).abs().mean()
    for spacing in ("trailing", "log_snr"):
        many = (end_of(samplers.DDIM(100, spacing), noise_schedule) - exact).abs().mean()
        assert few < many


def test_the_third_estimate_makes_the_error_smaller(case):
    noise_schedule, exact = case
    three, two = (samplers.DPMSolverPP(40, "log_snr_to_1", order=order) for order in (3, 2))
    errors = [(end_of(sampler, noise_schedule) - exact).abs().mean() for sampler in (three, two)]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("num_steps", [10, 20])
@pytest.mark.parametrize("make", [samplers.DPMSolverPP, samplers.UniPC, samplers.DPM2])
def test_the_spacing_that_a_sampler_favours_is_near_the_best_in_few_steps(case, make, num_steps):
    off = distances(case[0], make, num_steps, (None, "trailing", "linspace", "karras", "log_snr"))
    assert off[None] <= 1.1 * min(off.values())


@pytest.mark.parametrize("num_steps", [10, 15, 20])
def test_heun_ends_nearer_with_the_spacing_it_favours_than_with_the_published_one(case, num_steps):
    off = distances(case[0], samplers.Heun, num_steps, (None, "karras", "log_snr"))
    assert off[None] < 0.9 * min(off["karras"], off["log_snr"])


def distances(noise_schedule, make, num_steps, spacings):
    """spacing -> the Wasserstein distance from the end of the ODE, whose map of numbers is monotone."""
    noise = torch.special.ndtri((torch.arange(501, dtype=torch.float64) + 0.5) / 501)

    def end(sampler):
        x_T = noise_schedule.prior(noise)
        return samplers.run(sampler(exact_mixture(noise_schedule), x_T, noise_schedule, None, None)).sort().values

    exact = end(samplers.Heun(500, "log_snr"))
    return {spacing: (end(make(num_steps, spacing)) - exact).abs().mean() for spacing in spacings}
