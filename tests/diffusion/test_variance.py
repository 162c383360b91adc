"""sigma_theta: what each choice says on a full and on a thinned grid of times."""

import pytest
import torch
from doubles import exact_gaussian

from ddpm_cli.diffusion import gaussian, losses, samplers, schedule, variance

NOISE = schedule.cosine(100)
FLOOR = losses.variance_floor(NOISE)
T = torch.tensor([1, 2, 50, 100])
AT, BEFORE = NOISE.level(T), NOISE.level(T - 1)


def exact_estimate(noise_schedule, std):
    """The noise error that the exact denoiser of N(mean, std²) data has: its x_0 error is the conditional variance."""
    level = noise_schedule.level(torch.arange(1, noise_schedule.num_timesteps + 1))
    x_0_error = 1 / (1 / std**2 + level.snr)
    return {"log_snr": level.log_snr, "noise_error": level.snr * x_0_error}


def test_learned_starts_at_fixed_large_and_goes_anywhere():
    raw = torch.zeros(4, 1, 2, 2, dtype=torch.float64)
    start = variance.Learned()(raw, AT, BEFORE, FLOOR)
    torch.testing.assert_close(start[:, 0, 0, 0], variance.FixedLarge()(None, AT, BEFORE, FLOOR))
    torch.testing.assert_close(variance.Learned()(raw - 3, AT, BEFORE, FLOOR), start - 3)


@pytest.mark.parametrize("std", [0.1, 0.5, 1.0])
def test_analytic_is_the_true_variance_of_the_reverse_step_for_gaussian_data(std):
    # q(x_s | x_t) of Gaussian data is Gaussian: its variance by conditioning the joint law of (x_s, x_t).
    sigma = variance.Analytic(exact_estimate(NOISE, std))
    for t, s in ((100, 99), (50, 49), (2, 1), (100, 50), (60, 1)):
        level_t, level_s = NOISE.level(torch.tensor(t)), NOISE.level(torch.tensor(s))
        marginal_t, marginal_s = (level.alpha**2 * std**2 + level.sigma**2 for level in (level_t, level_s))
        alpha_ts, _ = gaussian.transition(level_t, level_s)
        truth = marginal_s - (alpha_ts * marginal_s) ** 2 / marginal_t
        torch.testing.assert_close(sigma(None, level_t, level_s, FLOOR).exp(), truth, rtol=1e-6, atol=0)


def test_analytic_lies_between_the_fixed_variances():
    sigma, t = variance.Analytic(exact_estimate(NOISE, 0.7)), torch.arange(2, 101)
    at, before = NOISE.level(t), NOISE.level(t - 1)
    low, high = (v(None, at, before, FLOOR) for v in (variance.FixedSmall(), variance.FixedLarge()))
    assert (low < sigma(None, at, before, FLOOR)).all() and (sigma(None, at, before, FLOOR) < high).all()


def test_analytic_is_the_best_variance_for_the_bound():
    noise_schedule, generator = schedule.cosine(20), torch.Generator().manual_seed(0)
    denoise = exact_gaussian(noise_schedule, 0.1, 0.4)
    x_0 = (0.1 + 0.4 * torch.randn(20_000, 1, generator=generator, dtype=torch.float64)).clamp(-1, 1)
    best = variance.Analytic(exact_estimate(noise_schedule, 0.4))
    for step in (2, 5, 10, 19):
        t = torch.full((len(x_0),), step)
        x_t = gaussian.diffuse(x_0, torch.randn(x_0.shape, generator=generator).double(), noise_schedule.level(t))
        terms = {
            v: losses.bound_term(denoise(x_t, t), x_0, x_t, t, noise_schedule, v).mean()
            for v in (best, variance.FixedSmall(), variance.FixedLarge())
        }
        assert min(terms, key=terms.get) is best


def test_analytic_is_finite_at_zero_terminal_snr_and_on_scalars():
    zero = schedule.zero_terminal_snr(NOISE)
    estimate = exact_estimate(NOISE, 0.5)
    at, before = zero.level(torch.tensor(100)), zero.level(torch.tensor(99))
    assert variance.Analytic(estimate)(None, at, before, FLOOR).isfinite()


def last_std(num_steps, spacing, last_noise):
    """Of the noise that the ancestral sampler draws last: found by drawing only there, of 1."""
    sigma = variance.Analytic(exact_estimate(NOISE, 0.5), last_noise)
    sampler = samplers.Ancestral(num_steps, spacing)

    def before_the_last_step(noise):
        steps = sampler(exact_gaussian(NOISE, 0.0, 0.5), torch.zeros(1, 1), NOISE, sigma, noise)
        return [step.x for step in steps][-2]

    assert sampler.times(NOISE)[-1] == 0
    ones = before_the_last_step(lambda i: torch.full((1, 1), float(i == num_steps - 2)))
    return float(ones - before_the_last_step(lambda i: torch.zeros(1, 1)))


@pytest.mark.parametrize("spacing", ["leading", "linspace", "log_snr"])
def test_the_noise_left_at_t_1_is_at_most_so_many_steps_of_a_pixel(spacing):
    """E|sigma noise| <= 2/255 y (Bao et al. 2022, Appendix)."""
    free = last_std(5, spacing, None)
    noise = torch.randn(10**6, generator=torch.Generator().manual_seed(0))
    for y in (0.5, 1.0, 2.0):
        bounded = last_std(5, spacing, y)
        assert float((bounded * noise).abs().mean()) == pytest.approx(2 / 255 * y, rel=5e-3) and bounded < free
    assert last_std(5, spacing, 1000.0) == free


def test_noise_that_another_estimate_follows_is_not_bounded():
    assert last_std(5, "trailing", 1.0) == last_std(5, "trailing", None) > 2 / 255 * 2
