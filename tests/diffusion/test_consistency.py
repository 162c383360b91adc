"""The consistency loss beside its formula, and what holds of the exact consistency function of Gaussian data."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_cli.diffusion import consistency, prediction, samplers, schedule, variance, weighting
from ddpm_cli.diffusion.compatibility import check_objective
from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.gaussian import expand
from ddpm_cli.diffusion.timesteps import Stratified

SCHEDULES = {
    "cosine": schedule.cosine(),
    "linear": schedule.linear(200),
    "edm": schedule.edm(),
    "flow": schedule.rectified_flow(),
}
MEAN, STD = 0.3, 0.5


class Affine(nn.Module):
    """A network with two parameters, that is told the time."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.7, -0.1))

    def forward(self, x, time, cond=None):
        return self.scale * x + self.shift * (time / 1000).reshape(-1, 1, 1)


@pytest.mark.parametrize("q,num_stages,k,b", [(2.0, 8, 8.0, 1.0), (4.0, 3, 0.0, 2.0)])
@pytest.mark.parametrize("progress", [0.0, 0.3, 0.999])
def test_the_step_is_that_of_the_paper(q, num_stages, k, b, progress):
    loss = consistency.Consistency(weighting.V(), q, num_stages, k, b).at(progress)
    t = torch.tensor([0.01, 0.5, 3.0, 80.0], dtype=torch.float64)
    naive = [
        max(0.0, 1 - (1 + k / (1 + math.exp(b * x))) / q ** (math.floor(progress * num_stages) + 1)) for x in t.tolist()
    ]
    torch.testing.assert_close(loss.step_ratio(t), torch.tensor(naive, dtype=torch.float64))


def test_a_run_goes_through_all_stages_for_as_long_each():
    loss = consistency.Consistency(weighting.V(), num_stages=4)
    assert [loss.at(step / 12).stage for step in range(12)] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert loss.at(12 / 12).stage == 4


def naive_loss(network, noise_schedule, predict, weight, x_0, noise, t, *, ratio, c):
    """One image's, r being `ratio` of t in sigma / alpha."""

    def estimate(time):
        level, before = noise_schedule.level(time), noise_schedule.level((time - 1).clamp(min=0))
        c_skip, c_out, c_in = (expand(v, x_0) for v in predict(level, before))
        x_t = expand(level.alpha, x_0) * x_0 + expand(level.sigma, x_0) * noise
        return c_skip * x_t + c_out * network(c_in * x_t, noise_schedule.network_time(time))

    level, least = noise_schedule.level(t), noise_schedule.level(torch.ones_like(t))
    sigma_t, sigma_1 = float(level.sigma / level.alpha), float(least.sigma / least.alpha)
    clean = ratio * sigma_t < sigma_1
    r = noise_schedule.time_of(torch.tensor([-2 * math.log(max(ratio * sigma_t, sigma_1))], dtype=torch.float64))
    target = x_0 if clean else estimate(r).detach()
    error = ((estimate(t) - target) ** 2).mean()
    step = sigma_t * (1 if clean else 1 - ratio)  # t - r
    return (weight(level).sqrt() * sigma_t / step)[0] * ((error + c**2).sqrt() - c)


@pytest.mark.parametrize("progress", [0.0, 0.6])
@pytest.mark.parametrize("weight", [weighting.Epsilon(), weighting.V(), weighting.MinSNR()], ids=repr)
@pytest.mark.parametrize("predict", [prediction.V(), prediction.X0(), prediction.EDM(), prediction.Flow()], ids=repr)
@pytest.mark.parametrize("name", SCHEDULES)
def test_loss_and_gradient_equal_the_naive_formula(name, predict, weight, progress):
    generator, network = torch.Generator().manual_seed(0), Affine()
    denoiser = Denoiser(network, SCHEDULES[name], predict, variance.FixedSmall())
    loss = consistency.Consistency(weight, huber_c=0.03).at(progress)
    x_0, noise = (torch.randn(4, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([1.0, 21.5, 90.0, 200.0], dtype=torch.float64)
    level = SCHEDULES[name].level(t)
    ratios = loss.step_ratio(level.sigma / level.alpha).tolist()
    ours = loss(denoiser, x_0, None, t, noise).total
    naive = torch.stack(
        [
            naive_loss(network, SCHEDULES[name], predict, weight, x_0[[i]], noise[[i]], t[[i]], ratio=ratios[i], c=0.03)
            for i in range(4)
        ]
    )
    torch.testing.assert_close(ours, naive, rtol=1e-8, atol=0)
    for mine, theirs in zip(*(torch.autograd.grad(v.sum(), network.parameters()) for v in (ours, naive)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-12)


class Gaussian(nn.Module):
    """Of data N(mean, std²): the exact consistency function, x_t's end on the ODE (blend 1), or the exact denoiser
    (blend 0)."""

    def __init__(self, noise_schedule, blend=1.0):
        super().__init__()
        self.schedule, self.blend = noise_schedule, nn.Parameter(torch.tensor(blend, dtype=torch.float64))

    def forward(self, x_t, t, cond=None):
        level = self.schedule.level(t)
        alpha, sigma = expand(level.alpha, x_t), expand(level.sigma, x_t)
        total = alpha**2 * STD**2 + sigma**2
        gain = torch.lerp(alpha * STD**2 / total, STD / total.sqrt(), self.blend)
        return Denoised(MEAN + gain * (x_t - alpha * MEAN))


def expected_gradient(noise_schedule, blend, t, q):
    """E[d loss / d blend] where the loss is a square (huber_c is large), by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    z, w = torch.tensor(nodes), torch.tensor(weights / weights.sum())
    x_0, noise = (MEAN + STD * z[:, None]).expand(12, 12).reshape(-1, 1), z[None].expand(12, 12).reshape(-1, 1)
    exact, c = Gaussian(noise_schedule, blend), 1e3
    loss = consistency.Consistency(weighting.Epsilon(), q=q, num_stages=1, k=0.0, huber_c=c)
    total = loss(exact, x_0, None, torch.full((144,), t, dtype=torch.float64), noise).total
    return float(c * torch.autograd.grad((w[:, None] * w).flatten() @ total, exact.blend)[0])


@pytest.mark.parametrize("name", ["cosine", "edm"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_the_exact_consistency_function_is_where_the_gradient_vanishes_as_r_nears_t(name, share):
    t = share * SCHEDULES[name].num_timesteps
    coarse, fine, finest = (abs(expected_gradient(SCHEDULES[name], 1.0, t, q)) for q in (16.0, 64.0, 256.0))
    assert fine < 0.3 * coarse and finest < 0.3 * fine  # in proportion to the step
    assert finest < 0.02 * abs(expected_gradient(SCHEDULES[name], 0.0, t, 256.0))  # a denoiser still has to learn


@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_exact_consistency_function_draws_the_data_in_any_number_of_steps(name, num_steps):
    noise_schedule, exact = SCHEDULES[name], Gaussian(SCHEDULES[name])

    def noise(i):
        return torch.randn(50_000, 1, generator=torch.Generator().manual_seed(i + 1), dtype=torch.float64)

    with torch.no_grad():
        x_T = noise_schedule.prior(noise(-1))
        steps = list(samplers.Consistency(num_steps)(exact, x_T, noise_schedule, None, noise))
    assert [step.index for step in steps] == list(range(num_steps)) and steps[-1].t == 0
    x = steps[-1].x
    assert abs(x.mean() - MEAN) < 0.01 and abs(x.std() / STD - 1) < 0.012
    torch.testing.assert_close(x, steps[-1].x_0, rtol=1e-12, atol=0)
    if num_steps > 1:  # one evaluation of a denoiser shows the mean of the data alone
        first = steps[0]
        level = noise_schedule.level(torch.tensor(first.t, dtype=torch.float64))
        torch.testing.assert_close(first.x, level.alpha * first.x_0 + level.sigma * noise(0))


def test_both_estimates_are_made_with_the_same_dropout():
    drawn = []

    class Dropping(nn.Module):
        def forward(self, x, time, cond=None):
            drawn.append((torch.rand(4), torch.is_grad_enabled()))
            return x

    denoiser = Denoiser(Dropping(), schedule.cosine(), prediction.V(), variance.FixedSmall())
    x = torch.randn(2, 1, 4, 4)
    torch.manual_seed(5)
    first = torch.rand(4)
    torch.manual_seed(5)
    consistency.Consistency(weighting.V())(denoiser, x, None, torch.tensor([400, 800]), x)
    (target, taught), (estimate, learns) = drawn
    assert torch.equal(target, estimate) and torch.equal(estimate, first) and learns and not taught
    assert not torch.equal(torch.rand(4), first)


@pytest.mark.parametrize(
    "noise_schedule,predict,told",
    [
        (schedule.linear(), prediction.Epsilon(), "157 times the network's error; choose prediction=v"),
        (schedule.cosine(), prediction.Mean(), "choose prediction=v"),
        (schedule.zero_terminal_snr(schedule.cosine()), prediction.V(), "choose schedule.zero_terminal_snr=false"),
    ],
)
def test_what_cannot_draw_in_one_step_is_refused(noise_schedule, predict, told):
    denoiser = Denoiser(Affine(), noise_schedule, predict, variance.FixedSmall())
    with pytest.raises(ValueError, match=told):
        check_objective(denoiser, consistency.Consistency(weighting.V()), Stratified())


@pytest.mark.parametrize("name,first", [("cosine", 80.0), ("edm", 80.0), ("linear", 80.0), ("table", 10.0)])
def test_the_walk_falls_in_equal_ratios_from_a_level_or_from_that_of_the_end(name, first):
    table = schedule.table((1 / (1 + torch.linspace(0.1, 10, 50).double() ** 2)).tolist())
    noise_schedule = {**SCHEDULES, "table": table}[name]
    for num_steps in (1, 2, 4):
        times = samplers.Consistency(num_steps).times(noise_schedule)
        level = noise_schedule.level(times[:-1])
        naive = [first ** (1 - i / max(num_steps - 1, 1)) for i in range(num_steps)]
        torch.testing.assert_close(
            level.sigma / level.alpha, torch.tensor(naive, dtype=torch.float64), rtol=1e-6, atol=0
        )
        assert times[-1] == 0
    assert samplers.Consistency(2, sigma_last=0.5).times(noise_schedule)[1] < times[2]
