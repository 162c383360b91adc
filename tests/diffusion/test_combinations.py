"""Every combination of prediction, weighting, schedule, loss and variance, with the timesteps taking turns: each trains
three steps or is refused before the first with a remedy."""

import itertools

import pytest
import torch
from torch import nn

from ddpm_cli.diffusion import consistency, losses, prediction, schedule, timesteps, variance, weighting
from ddpm_cli.diffusion.compatibility import check_objective, lopsided
from ddpm_cli.diffusion.denoiser import Denoiser

TABLES = {
    "linear": schedule.linear(20, 1e-4, 0.015),
    "scaled_linear": schedule.scaled_linear(20),
    "quadratic": schedule.scaled_linear(20, 1e-4, 0.015),
    "constant": schedule.constant(20),
    "cosine": schedule.cosine(20),
    "sigmoid": schedule.sigmoid(20),
    "laplace": schedule.laplace(20),
    "cosine_log_snr": schedule.cosine_log_snr(20),
    "table": schedule.table(torch.linspace(0.99, 0.01, 20).tolist()),
}
SCHEDULES = {
    **TABLES,
    **{f"{name}_zero": schedule.zero_terminal_snr(table) for name, table in TABLES.items()},
    "edm": schedule.edm(20),
    "rectified_flow": schedule.rectified_flow(20),
}
PREDICTIONS = [
    prediction.Epsilon(), prediction.X0(), prediction.V(), prediction.Mean(), prediction.EDM(), prediction.Flow(),
]  # fmt: skip
WEIGHTINGS = [
    weighting.Epsilon, weighting.X0, weighting.V, weighting.MinSNR, weighting.SoftMinSNR, weighting.P2,
    weighting.EDM, weighting.Flow, weighting.Uncertainty,
]  # fmt: skip
LOSSES = [
    losses.Denoising, lambda w: losses.Denoising(w, huber_delta=0.5), losses.VariationalBound, losses.Hybrid,
    consistency.Consistency,
]  # fmt: skip
VARIANCES = [
    variance.FixedSmall(), variance.FixedLarge(), variance.LearnedRange(), variance.Learned(), variance.Analytic(None),
]  # fmt: skip
LAWS = [timesteps.LogNormal, timesteps.LogitNormal, timesteps.Laplace, timesteps.Cosine]
TIMES = [timesteps.Uniform, timesteps.Stratified, lambda: timesteps.LossSecondMoment(20, history=1), *LAWS]
X_0 = torch.randint(0, 256, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
X_0[:, :, :2], X_0[:, :, -2:] = -1.0, 1.0  # the outermost values are a case of their own
NOISE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
U = torch.rand(3, 2, generator=torch.Generator().manual_seed(2))


class Tiny(nn.Module):
    """A convolution that is told the time."""

    def __init__(self, out_channels):
        super().__init__()
        self.body = nn.Conv2d(2, out_channels, 3, padding=1)
        nn.init.normal_(self.body.weight, std=0.05, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(self.body.bias)

    def forward(self, x, time, cond=None):
        return self.body(torch.cat([x, (time / 1000).reshape(-1, 1, 1, 1).expand_as(x)], 1))


def trains_three_steps(noise_schedule, predict, weight, make_loss, sigma, distribution):
    """Whether it trains; a refusal must name a remedy, and a step must be finite and move what it should."""
    network = Tiny(2 if sigma.learned else 1)
    loss = make_loss(weight)
    try:
        denoiser = Denoiser(network, noise_schedule, predict, sigma)
        check_objective(denoiser, loss, distribution)
    except ValueError as error:
        assert "choose " in str(error) or "then run " in str(error)
        return False
    learned = list(weight.parameters()) if isinstance(weight, nn.Module) else []
    parameters = [*network.parameters(), *learned]
    for u in U:
        t, importance = distribution(u, noise_schedule)
        total = loss(denoiser, X_0, None, t, NOISE).total
        gradients = torch.autograd.grad((importance * total).mean(), parameters)
        assert all(g.isfinite().all() for g in gradients) and total.isfinite().all()
        norm = torch.stack([g.norm() for g in gradients]).norm()
        assert norm > 0
        with torch.no_grad():
            torch._foreach_sub_(parameters, gradients, alpha=float(1e-3 / norm))
        distribution.observe(t, total)
    assert not sigma.learned or gradients[0][1:].abs().sum() > 0
    assert not learned or gradients[-1].abs().sum() > 0
    return True


# The others cost as much again each, and differ in nothing but the table that they give.
QUICK = {"linear", "cosine", "edm", "rectified_flow", "table"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SCHEDULES]
)
def test_every_combination_trains_or_is_refused_with_a_remedy(name):
    trained, choices = 0, itertools.product(PREDICTIONS, WEIGHTINGS, LOSSES, VARIANCES)
    for i, (predict, make_weight, make_loss, sigma) in enumerate(choices):
        times = TIMES[(i + i // 25) % 7]()  # not in step with the losses and variances, of which there are 25 pairs
        trained += trains_three_steps(SCHEDULES[name], predict, make_weight(), make_loss, sigma, times)
    assert trained > 50


@pytest.mark.parametrize("make_time", TIMES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("make_loss", [losses.Denoising, losses.VariationalBound], ids=["denoising", "bound"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_timesteps_suit_every_schedule_or_are_refused(name, make_loss, make_time):
    times, zero = make_time(), SCHEDULES[name].zero_terminal_snr
    trained = trains_three_steps(
        SCHEDULES[name], prediction.V(), weighting.V(), make_loss, variance.FixedSmall(), times
    )
    assert trained == (times.covers_all or (make_loss is losses.Denoising and not zero))


FULL = ["linear", "cosine", "sigmoid", "laplace", "edm", "rectified_flow"]


@pytest.mark.parametrize("name", FULL)
def test_what_hardly_trains_is_told_with_a_remedy_that_is_not(name):
    """The noise, predicted, says nothing of x_0 at the end: there its error must not weigh as one of x_0 or v does."""

    def told(of, weight):
        return lopsided(
            Denoiser(Tiny(1), getattr(schedule, name)(), of, variance.FixedSmall()), losses.Denoising(weight())
        )

    for weight in WEIGHTINGS:
        hardly = weight in (weighting.X0, weighting.V, weighting.EDM, weighting.Flow)
        assert (told(prediction.Epsilon(), weight) is not None) == hardly, weight
        for other in (prediction.X0(), prediction.V(), prediction.EDM(), prediction.Flow()):
            assert told(other, weight) is None, (other, weight)
    assert "weighting=epsilon or min_snr for it, or prediction=v" in told(prediction.Epsilon(), weighting.V)


@pytest.mark.parametrize("num_timesteps", [1, 2])
def test_a_schedule_of_hardly_a_time_is_looked_at_too(num_timesteps):
    few = Denoiser(Tiny(1), schedule.linear(num_timesteps, 1e-4, 1e-3), prediction.Epsilon(), variance.FixedSmall())
    assert lopsided(few, losses.Denoising(weighting.V())) is None
