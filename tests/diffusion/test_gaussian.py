import math

import pytest
import torch

from ddpm_cli.diffusion import gaussian, schedule
from ddpm_cli.diffusion.gaussian import NoiseLevel


def test_forward_steps_compose_to_q_of_x_t_given_x_0():
    noise_schedule, x_0 = schedule.linear(50), torch.tensor([[0.7, -0.3]], dtype=torch.float64)
    mean, variance = x_0, torch.zeros_like(x_0)
    for t in range(1, 51):  # the mean and variance of a chain of q(x_t | x_{t-1}), in closed form
        alpha_ts, step_variance = gaussian.transition(noise_schedule.level(t), noise_schedule.level(t - 1))
        mean, variance = alpha_ts * mean, alpha_ts**2 * variance + step_variance
        level = noise_schedule.level(t)
        torch.testing.assert_close(mean, level.alpha * x_0, rtol=1e-12, atol=0)
        torch.testing.assert_close(variance, (level.sigma**2).expand_as(variance), rtol=1e-10, atol=0)


def test_stepping_forward_by_sampling_reaches_the_law_of_diffuse():
    noise_schedule, generator = schedule.cosine(20), torch.Generator().manual_seed(0)
    x = torch.full((200_000, 1), 0.8, dtype=torch.float64)
    for t in range(1, 11):
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = gaussian.step_forward(x, noise, noise_schedule.level(t), noise_schedule.level(t - 1))
    level = noise_schedule.level(10)
    assert abs(x.mean() - 0.8 * level.alpha) < 5 * level.sigma / math.sqrt(len(x))
    assert abs(x.std() / level.sigma - 1) < 0.01


def test_posterior_times_marginal_is_the_joint():
    # p(x_s | x_t, x_0) p(x_t | x_0) = p(x_t | x_s) p(x_s | x_0), for any s < t
    noise_schedule = schedule.linear(1000)
    level_t, level_s = noise_schedule.level(700), noise_schedule.level(123)
    x_0, x_s, x_t = (torch.tensor([v], dtype=torch.float64) for v in (0.4, -0.2, 1.1))

    def log_normal(x, mean, variance):
        return -0.5 * ((x - mean) ** 2 / variance + variance.log() + math.log(2 * math.pi))

    mean, variance = gaussian.posterior(x_t, x_0, level_t, level_s)
    alpha_ts, step_variance = gaussian.transition(level_t, level_s)
    left = log_normal(x_s, mean, variance) + log_normal(x_t, level_t.alpha * x_0, level_t.sigma**2)
    right = log_normal(x_t, alpha_ts * x_s, step_variance) + log_normal(x_s, level_s.alpha * x_0, level_s.sigma**2)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=0)


def test_posterior_at_the_clean_image_is_the_clean_image():
    level_t, level_s = schedule.cosine(1000).level(1), schedule.cosine(1000).level(0)
    x_t, x_0 = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    mean, variance = gaussian.posterior(x_t, x_0, level_t, level_s)
    torch.testing.assert_close(mean, x_0)
    assert variance == 0


def test_infer_noise_undoes_diffuse_for_images_and_sound():
    t = torch.tensor([1, 500, 1000])
    for shape in ((3, 2, 4, 4), (3, 1, 16)):
        x_0, noise = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
        level = schedule.linear().level(t)
        torch.testing.assert_close(gaussian.infer_noise(gaussian.diffuse(x_0, noise, level), x_0, level), noise)


def test_levels_of_no_dimension_do_not_promote_float32():
    x = torch.randn(2, 3, 4, 4)
    assert gaussian.diffuse(x, x, schedule.linear().level(5.0)).dtype == torch.float32
    assert gaussian.diffuse(x, x, schedule.linear().level(torch.tensor([5, 6]))).dtype == torch.float32


def test_kl_is_zero_between_equals_and_agrees_with_torch():
    args = [torch.tensor(v, dtype=torch.float64) for v in (0.3, -1.2, -0.4, 0.6)]
    assert gaussian.kl_divergence(args[0], args[1], args[0], args[1]) == 0
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(args[0], (args[1] / 2).exp()), normal(args[2], (args[3] / 2).exp())
    )
    torch.testing.assert_close(gaussian.kl_divergence(*args), expected)


@pytest.mark.parametrize("mean,log_variance", [(0.0, -2.0), (0.93, -6.0), (-1.4, 0.5)])
def test_decoder_is_a_distribution_over_the_256_values(mean, log_variance):
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    log_p = gaussian.discretised_log_likelihood(
        values, torch.full_like(values, mean), torch.full_like(values, log_variance)
    )
    assert abs(log_p.exp().sum() - 1) < 1e-9


def test_decoder_keeps_its_accuracy_in_both_tails():
    mean = torch.tensor([0.9, -0.9], dtype=torch.float64)
    log_p = gaussian.discretised_log_likelihood(torch.tensor([0.2, -0.2]).double(), mean, torch.full_like(mean, -4.0))
    torch.testing.assert_close(log_p[0], log_p[1], rtol=1e-6, atol=0)


def test_decoder_has_a_finite_gradient_in_the_outermost_bins():
    x_0 = torch.tensor([-1.0, 1.0, 1.0, -1.0, 0.0])
    for dtype in (torch.float32, torch.float64):
        mean = torch.tensor([-0.9, 0.9, -0.9, 1.5, 0.3], dtype=dtype, requires_grad=True)
        for size in (-20.0, -9.0, 0.0, 3.0):
            log_variance = torch.full_like(mean, size).requires_grad_()
            log_p = gaussian.discretised_log_likelihood(x_0.to(dtype), mean, log_variance)
            assert all(g.isfinite().all() for g in torch.autograd.grad(log_p.sum(), (mean, log_variance)))


def test_snr_of_the_clean_image_is_infinite():
    assert schedule.linear().level(0).snr == float("inf")
    assert NoiseLevel(torch.tensor(0.6), torch.tensor(0.8)).snr == pytest.approx(0.5625)


def test_the_decoders_gradient_is_finite_where_its_bins_are_open():
    x_0 = torch.tensor([-1.0, 0.2, 1.0])
    mean, log_variance = torch.zeros(3, requires_grad=True), torch.full((3,), -3.0, requires_grad=True)
    gaussian.discretised_log_likelihood(x_0, mean, log_variance).sum().backward()
    assert mean.grad.isfinite().all() and log_variance.grad.isfinite().all()
