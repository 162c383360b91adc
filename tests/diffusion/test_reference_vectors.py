"""Every number of gaussian_diffusion.npz (improved-diffusion in float64), with t shifted by one."""

import math

import numpy as np
import pytest
import torch
from doubles import ToyNetwork, toy_epsilon, toy_x0

from ddpm_cli.diffusion import gaussian, losses, prediction, samplers, schedule, variance, weighting
from ddpm_cli.diffusion.denoiser import Denoiser, clipped

TABLES = ["linear_100", "linear_1000", "cosine_100", "cosine_1000"]
VARIANCES = {"small": variance.FixedSmall(), "large": variance.FixedLarge(), "range": variance.LearnedRange()}
HEADS = {
    "eps": (toy_epsilon, prediction.Epsilon(), weighting.Epsilon()),
    "x0": (toy_x0, prediction.X0(), weighting.X0()),
}


@pytest.fixture(scope="module")
def vectors(shared):
    return {k: torch.from_numpy(v) for k, v in np.load(shared / "vectors" / "gaussian_diffusion.npz").items()}


def make_schedule(table):
    name, steps = table.split("_")
    return getattr(schedule, name)(int(steps))


def tanh_log_likelihood(x_0, mean, log_variance):
    """The reference's decoder: the normal cdf as 1/2 (1 + tanh(sqrt(2/pi) (z + 0.044715 z³)))."""

    def cdf(z):
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    upper, lower = (cdf((x_0 - mean + side / 255) * torch.exp(-0.5 * log_variance)) for side in (1, -1))
    probability = torch.where(x_0 < -0.999, upper, torch.where(x_0 > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


def close(actual, expected, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


@pytest.fixture(params=TABLES)
def case(request, vectors):
    prefix = request.param + "/"
    return make_schedule(request.param), {k[len(prefix) :]: v for k, v in vectors.items() if k.startswith(prefix)}


def test_tables_meet_the_reference(case):
    noise, ref = case
    before, at = noise.level(torch.arange(noise.num_timesteps)), noise.level(torch.arange(1, noise.num_timesteps + 1))
    close(noise.alpha_bar[1:], ref["alphas_cumprod"], atol=0)
    close(gaussian.transition(at, before)[1], ref["betas"], atol=0)
    c_0, c_t, posterior_variance = gaussian.posterior_coefficients(at, before)
    close(c_0, ref["posterior_mean_coef1"])
    close(c_t, ref["posterior_mean_coef2"])
    close(posterior_variance, ref["posterior_variance"])
    floor = losses.variance_floor(noise)
    close(variance.FixedSmall()(None, at, before, floor), ref["posterior_log_variance_clipped"])


def test_forward_process_posterior_and_prior_meet_the_reference(case):
    noise, ref = case
    t = ref["t"] + 1
    x_t = gaussian.diffuse(ref["x0"], ref["noise"], noise.level(t))
    close(x_t, ref["x_t"])
    mean, posterior_variance = gaussian.posterior(x_t, ref["x0"], noise.level(t), noise.level(t - 1))
    close(mean, ref["posterior_mean"])
    close(posterior_variance, ref["posterior_var"].reshape(len(t), -1)[:, 0])
    close(losses.prior_term(ref["x0"], noise), ref["prior_bpd"])


@pytest.mark.parametrize("clip", ["clip", "noclip"])
@pytest.mark.parametrize("sigma", VARIANCES)
@pytest.mark.parametrize("head", HEADS)
def test_reverse_step_meets_the_reference(case, head, sigma, clip):
    noise, ref = case
    network, predict, _ = HEADS[head]
    denoiser = Denoiser(ToyNetwork(network, sigma == "range"), noise, predict, VARIANCES[sigma])
    t = ref["t"] + 1
    denoised = (clipped(denoiser) if clip == "clip" else denoiser)(ref["x_t"], t)
    key = f"{head}_{sigma}_{clip}"
    close(denoised.x_0, ref[f"{key}/pred_x0"])
    mean, _ = gaussian.posterior(ref["x_t"], denoised.x_0, noise.level(t), noise.level(t - 1))
    close(mean, ref[f"{key}/mean"])
    log_variance = VARIANCES[sigma](denoised.raw, noise.level(t), noise.level(t - 1), losses.variance_floor(noise))
    log_variance = losses.expand_log_variance(log_variance, mean).expand_as(mean)
    close(log_variance, ref[f"{key}/log_variance"].expand_as(mean))


@pytest.mark.parametrize("sigma", VARIANCES)
@pytest.mark.parametrize("head", HEADS)
def test_losses_meet_the_reference_with_its_cdf(case, head, sigma, monkeypatch):
    monkeypatch.setattr(losses, "discretised_log_likelihood", tanh_log_likelihood)
    noise, ref = case
    network, predict, weight = HEADS[head]
    denoiser = Denoiser(ToyNetwork(network, sigma == "range"), noise, predict, VARIANCES[sigma])
    t, key = ref["t"] + 1, f"{head}_{sigma}"
    for suffix, denoise in {"": denoiser, "_clip": clipped(denoiser)}.items():
        vb = losses.bound_term(denoise(ref["x_t"], t), ref["x0"], ref["x_t"], t, noise, VARIANCES[sigma])
        close(vb, ref[f"{key}/vlb_bpd{suffix}"])
    close(losses.Denoising(weight)(denoiser, ref["x0"], None, t, ref["noise"]).total, ref[f"{key}/mse"])
    if sigma == "range":
        close(losses.Hybrid(weight)(denoiser, ref["x0"], None, t, ref["noise"]).total, ref[f"{key}/hybrid"])


@pytest.mark.parametrize("sigma", VARIANCES)
@pytest.mark.parametrize("head", HEADS)
def test_exact_cdf_differs_from_the_references_by_2e_3_in_probability(case, head, sigma):
    # In bits the two part without limit where a mean lies many sigmas away: the logarithm of a tail.
    noise, ref = case
    t = torch.ones(1, dtype=torch.long)
    network, predict, _ = HEADS[head]
    denoised = Denoiser(ToyNetwork(network, sigma == "range"), noise, predict, VARIANCES[sigma])(ref["x_t"][:1], t)
    log_variance = VARIANCES[sigma](denoised.raw, noise.level(t), noise.level(t - 1), losses.variance_floor(noise))
    args = ref["x0"][:1], denoised.x_0, losses.expand_log_variance(log_variance, denoised.x_0)
    close(gaussian.discretised_log_likelihood(*args).exp(), tanh_log_likelihood(*args).exp(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("clip", ["clip", "noclip"])
@pytest.mark.parametrize("name,spacing", [("ddim10", "leading"), ("ddim25", "leading"), ("20", "linspace")])
def test_ddim_end_points_meet_the_reference(case, name, spacing, clip):
    noise, ref = case
    visited = ref[f"timesteps_{name}"]
    times = noise.times(len(visited), spacing)
    assert times[:-1].flip(0).long().tolist() == (visited + 1).tolist()
    denoiser = Denoiser(ToyNetwork(toy_epsilon, False), noise, prediction.Epsilon(), variance.FixedSmall())
    sampler = samplers.DDIM(len(visited), spacing)
    end = samplers.run(sampler(clipped(denoiser) if clip == "clip" else denoiser, ref["noise"][:2], noise, None, None))
    close(end, ref[f"ddim_{name}_{clip}"], rtol=1e-7, atol=1e-7)
    level = noise.level(times.flip(0))
    respaced = gaussian.transition(
        gaussian.NoiseLevel(level.alpha[1:], level.sigma[1:]), gaussian.NoiseLevel(level.alpha[:-1], level.sigma[:-1])
    )[1]
    close(respaced, ref[f"respaced_{name}/betas"])
