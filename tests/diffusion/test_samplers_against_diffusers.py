"""End points of diffusers' schedulers in float32: same x_0 network, same noise, same grid of times.

diffusers counts t from 0. Where its grid is not the one it claims, it is given no credit: its DDIM and DDPM step to
t - T/n instead of the next time of their own list, which differs for linspace spacing.
"""

import pytest
import torch
from doubles import ToyNetwork, toy_x0

from ddpm_cli.diffusion import prediction, samplers, schedule, variance
from ddpm_cli.diffusion.denoiser import Denoiser

diffusers = pytest.importorskip("diffusers")

SCHEDULE = schedule.linear()
NETWORK = ToyNetwork(toy_x0, False)
DENOISER = Denoiser(NETWORK, SCHEDULE, prediction.X0(), variance.FixedSmall())
SHAPE = (2, 3, 8, 8)
STEPS = [5, 10, 20, 50]


def noise(i):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(i + 1))


@pytest.fixture(autouse=True)
def the_same_noise(monkeypatch):
    """diffusers' k-th draw is ours of step k."""
    draws = iter(range(1000))
    for module in ("ddpm", "ddim", "dpmsolver_multistep"):
        name = f"diffusers.schedulers.scheduling_{module}.randn_tensor"
        monkeypatch.setattr(name, lambda *args, **kwargs: noise(next(draws)))


def end_of(scheduler, num_steps):
    """(times, end point): diffusers' loop, its times as ours."""
    scheduler.set_timesteps(num_steps)
    x = noise(-1) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        estimate = NETWORK(scheduler.scale_model_input(x, t), torch.as_tensor(t).expand(len(x)).float())
        x = scheduler.step(estimate, t, x).prev_sample
    return [*dict.fromkeys((scheduler.timesteps + 1).tolist()), 0], x


def made(name, spacing="trailing", **options):
    defaults = {"prediction_type": "sample", "timestep_spacing": spacing, "beta_start": 1e-4, "beta_end": 0.02}
    return getattr(diffusers, name)(**defaults, **options)


def own(sampler, sigma=None, scale=1.0):
    return samplers.run(sampler(DENOISER, noise(-1) * scale, SCHEDULE, sigma, noise))


CASES = {
    "ddpm": (lambda: made("DDPMScheduler", clip_sample=False), samplers.Ancestral, variance.FixedSmall()),
    "ddim": (lambda: made("DDIMScheduler", clip_sample=False), samplers.DDIM, None),
    "dpmpp": (lambda: made("DPMSolverMultistepScheduler", final_sigmas_type="zero"), samplers.DPMSolverPP, None),
    "dpmpp_sde": (
        lambda: made("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
        samplers.DPMSolverPPSDE,
        None,
    ),
    "unipc": (lambda: made("UniPCMultistepScheduler"), samplers.UniPC, None),
    "unipc_3": (
        lambda: made("UniPCMultistepScheduler", solver_order=3),
        lambda *args: samplers.UniPC(*args, order=3),
        None,
    ),
    "euler": (lambda: made("EulerDiscreteScheduler"), samplers.Euler, None),
    "heun": (lambda: made("HeunDiscreteScheduler"), samplers.Heun, None),
}


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("name", CASES)
def test_end_points_are_diffusers(name, num_steps):
    make, sampler, sigma = CASES[name]
    scheduler = make()
    times, expected = end_of(scheduler, num_steps)
    assert times == SCHEDULE.times(num_steps, "trailing").tolist()
    scale = float(SCHEDULE.level(1000.0).alpha) * scheduler.init_noise_sigma if name in ("euler", "heun") else 1.0
    end = own(sampler(num_steps, "trailing"), sigma, float(scale))
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_noise_is_diffusers(num_steps, eta, monkeypatch):
    scheduler = made("DDIMScheduler", "leading", clip_sample=False)
    step = scheduler.step
    monkeypatch.setattr(scheduler, "step", lambda *args: step(*args, eta=eta))
    times, expected = end_of(scheduler, num_steps)
    assert times == SCHEDULE.times(num_steps, "leading").tolist()
    torch.testing.assert_close(own(samplers.DDIM(num_steps, "leading", eta)), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_steps", [10, 50])
def test_diffusers_ddim_leaves_its_own_grid_for_linspace(num_steps):
    times, wrong = end_of(made("DDIMScheduler", "linspace", clip_sample=False), num_steps)
    assert times == SCHEDULE.times(num_steps, "linspace").tolist()
    right = own(samplers.DDIM(num_steps, "linspace"))
    assert (right - wrong).abs().max() > 1e-3  # it steps from t to t - T/n, which is not the next of its times


@pytest.mark.parametrize("num_steps", STEPS)
def test_karras_sigmas_are_diffusers(num_steps):
    scheduler = made("HeunDiscreteScheduler", "linspace", use_karras_sigmas=True)
    scheduler.set_timesteps(num_steps)
    level = SCHEDULE.level(SCHEDULE.times(num_steps, "karras"))
    sigmas = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])[: num_steps + 1].double()
    torch.testing.assert_close((level.sigma / level.alpha)[:-1], sigmas[:-1], rtol=1e-4, atol=1e-5)
