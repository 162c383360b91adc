import pytest
import torch
from doubles import ToyNetwork
from reference import naive_bound_term, naive_loss

from ddpm_cli.diffusion import gaussian, losses, prediction, schedule, timesteps, variance, weighting
from ddpm_cli.diffusion.denoiser import Denoised, Denoiser

PREDICTIONS = {
    "epsilon": prediction.Epsilon(),
    "x0": prediction.X0(),
    "v": prediction.V(),
    "mean": prediction.Mean(),
    "edm": prediction.EDM(),
    "flow": prediction.Flow(),
}
WEIGHTINGS = {
    "epsilon": weighting.Epsilon(),
    "x0": weighting.X0(),
    "v": weighting.V(),
    "min_snr": weighting.MinSNR(),
    "soft_min_snr": weighting.SoftMinSNR(),
    "p2": weighting.P2(),
    "edm": weighting.EDM(),
    "flow": weighting.Flow(),
}
SCHEDULES = {
    "linear": schedule.linear(),
    "quadratic": schedule.scaled_linear(1000, 1e-4, 0.02),
    "cosine": schedule.cosine(),
    "sigmoid": schedule.sigmoid(),
    "laplace": schedule.laplace(),
    "zero": schedule.zero_terminal_snr(schedule.linear()),
}


class Affine(torch.nn.Module):
    """A network with two parameters, to have gradients of."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = torch.nn.Parameter(torch.tensor(0.7)), torch.nn.Parameter(torch.tensor(-0.1))

    def forward(self, x, time=None, cond=None):
        return self.scale * x + self.shift


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("weight", WEIGHTINGS)
@pytest.mark.parametrize("predict", PREDICTIONS)
def test_weighted_loss_and_gradient_equal_the_naive_formula(predict, weight, name):
    noise_schedule = SCHEDULES[name]
    if noise_schedule.zero_terminal_snr and PREDICTIONS[predict].needs_signal:
        pytest.skip("refused")
    generator = torch.Generator().manual_seed(0)
    for t in (1, 30, 500, 900):
        network = Affine().double()
        x_0, noise = (torch.randn(1, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
        denoiser = Denoiser(network, noise_schedule, PREDICTIONS[predict], variance.FixedSmall())
        ours = losses.Denoising(WEIGHTINGS[weight])(denoiser, x_0, None, torch.tensor([t]), noise).total[0]
        naive = naive_loss(weight, predict, noise_schedule, network, x_0, noise, t)
        torch.testing.assert_close(ours, naive, rtol=1e-8, atol=0)
        for mine, theirs in zip(*(torch.autograd.grad(v, network.parameters()) for v in (ours, naive)), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-12)


def test_gradient_of_the_bound_equals_that_of_its_naive_formula():
    noise_schedule, generator = schedule.cosine(100), torch.Generator().manual_seed(0)
    x_0, noise = (torch.randn(1, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    for t in (2, 50, 99):
        network = Affine().double()
        denoiser = Denoiser(network, noise_schedule, prediction.X0(), variance.FixedLarge())
        ours = losses.VariationalBound(weighting.V())(denoiser, x_0, None, torch.tensor([t]), noise).total[0]
        level = noise_schedule.level(t)
        x_t = level.alpha * x_0 + level.sigma * noise
        beta = 1 - noise_schedule.alpha_bar[t] / noise_schedule.alpha_bar[t - 1]
        naive = 100 * naive_bound_term(noise_schedule, x_0, network(x_t), x_t, t, beta)
        torch.testing.assert_close(ours, naive, rtol=1e-8, atol=0)
        for mine, theirs in zip(*(torch.autograd.grad(v, network.parameters()) for v in (ours, naive)), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("delta", [0.1, 0.5, 100.0])
def test_huber_is_a_penalty_of_the_weighted_error(delta):
    noise_schedule, network = schedule.cosine(), Affine().double()
    x_0, noise = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    t = torch.tensor([5, 500, 950])
    denoiser = Denoiser(network, noise_schedule, prediction.Epsilon(), variance.FixedSmall())
    terms = losses.Denoising(weighting.Epsilon(), huber_delta=delta)(denoiser, x_0, None, t, noise)
    error = network(gaussian.diffuse(x_0, noise, noise_schedule.level(t))) - noise
    naive = 2 * delta * torch.nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta)
    naive = naive / delta  # torch's is half the square
    torch.testing.assert_close(terms.total, naive.flatten(1).mean(1), rtol=1e-7, atol=0)
    torch.testing.assert_close(terms.mse, (error**2).flatten(1).mean(1), rtol=1e-7, atol=0)
    parts = terms.total.sum(), naive.flatten(1).mean(1).sum()
    for mine, theirs in zip(*(torch.autograd.grad(v, network.parameters()) for v in parts), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-12)


def test_uncertainty_divides_the_error_by_what_it_learned_and_reports_it_plain():
    learned, noise_schedule = weighting.Uncertainty(), schedule.edm()
    torch.nn.init.normal_(learned.weight)
    x_0, noise, t = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.tensor([5.5, 500.25, 950.0])
    denoiser = Denoiser(Affine(), noise_schedule, prediction.EDM(), variance.FixedSmall())
    terms = losses.Denoising(learned)(denoiser, x_0, None, t, noise)
    plain = losses.Denoising(weighting.EDM())(denoiser, x_0, None, t, noise).total
    u = learned.log_error(noise_schedule.level(t))
    torch.testing.assert_close(terms.mse, plain)
    torch.testing.assert_close(terms.total, plain / u.exp() + u)
    assert torch.autograd.grad(terms.total.sum(), learned.weight)[0].abs().sum() > 0


def test_float32_loss_keeps_five_digits_at_every_noise_level():
    for key, name in (("epsilon", "epsilon"), ("x0", "x0"), ("v", "v"), ("edm", "edm"), ("v", "min_snr")):
        predict, weight = PREDICTIONS[key], WEIGHTINGS[name]
        noise_schedule, x_0, noise = schedule.cosine(), torch.randn(8, 1, 4, 4), torch.randn(8, 1, 4, 4)
        t = torch.tensor([1, 2, 10, 100, 500, 900, 990, 999])
        single = Denoiser(Affine(), noise_schedule, predict, variance.FixedSmall())
        double = Denoiser(Affine().double(), noise_schedule, predict, variance.FixedSmall())
        low = losses.Denoising(weight)(single, x_0, None, t, noise).total
        high = losses.Denoising(weight)(double, x_0.double(), None, t, noise.double()).total
        torch.testing.assert_close(low.double(), high, rtol=2e-4, atol=1e-6, msg=name)


def test_hybrid_teaches_the_variance_but_not_the_mean_by_the_bound():
    class TwoHeads(Affine):
        def __init__(self):
            super().__init__()
            self.log_scale = torch.nn.Parameter(torch.tensor(0.2))

        def forward(self, x, time=None, cond=None):
            return torch.cat([super().forward(x), self.log_scale * torch.ones_like(x)], 1)

    network = TwoHeads()
    denoiser = Denoiser(network, schedule.cosine(), prediction.Epsilon(), variance.LearnedRange())
    x_0, noise, t = torch.rand(4, 1, 4, 4), torch.randn(4, 1, 4, 4), torch.tensor([2, 50, 300, 900])
    hybrid = losses.Hybrid(weighting.Epsilon())(denoiser, x_0, None, t, noise)
    simple = losses.Denoising(weighting.Epsilon())(denoiser, x_0, None, t, noise)
    of_hybrid = torch.autograd.grad(hybrid.total.sum(), network.parameters())
    of_simple = torch.autograd.grad(simple.total.sum(), network.parameters(), allow_unused=True)
    torch.testing.assert_close(of_hybrid[:2], of_simple[:2])
    assert of_hybrid[2] != 0


def test_bound_estimates_the_sum_of_its_terms():
    noise_schedule = schedule.cosine(20)
    denoiser = Denoiser(
        ToyNetwork(lambda x, u: torch.tanh(x), False), noise_schedule, prediction.X0(), variance.FixedSmall()
    )
    x_0 = torch.randint(0, 256, (20, 1, 4, 4)).double() / 127.5 - 1
    noise, t = torch.randn(20, 1, 4, 4, dtype=torch.float64), torch.arange(1, 21)
    terms = losses.VariationalBound(weighting.Epsilon())(denoiser, x_0, None, t, noise)
    torch.testing.assert_close(terms.total, 20 * terms.vb)
    assert (terms.vb[1:] >= 0).all()


def test_stratified_times_cover_the_range_evenly():
    noise_schedule, u = schedule.linear(), torch.rand(100)
    t, importance = timesteps.Stratified()(u, noise_schedule)
    assert ((t - 1) // 10).sort().values.unique().numel() >= 99 and (importance == 1).all()
    assert t.min() >= 1 and t.max() <= 1000


def test_uniform_times_span_one_to_t():
    t, _ = timesteps.Uniform()(torch.tensor([0.0, 0.4999, 1 - 2**-24]), schedule.linear())
    assert t.tolist() == [1, 500, 1000]


def test_epsilon_prediction_is_refused_at_zero_terminal_snr():
    level = torch.linspace(1, 0, 11, dtype=torch.float64)
    zero = schedule.NoiseSchedule(level, (1 - level**2).sqrt())
    with pytest.raises(ValueError, match="choose prediction=v"):
        Denoiser(Affine(), zero, prediction.Epsilon(), variance.FixedSmall())


@pytest.mark.parametrize(("delta", "distance"), [(None, 4.0), (0.5, 0.5 * (2 * 2.0 - 0.5))])
def test_an_autoencoders_loss_is_the_error_and_the_divergence_of_the_latents(delta, distance):
    x_0, noise, told = torch.zeros(2, 3, 4, 4), torch.randn(2, 3, 4, 4), {}

    def reconstruct(x, t, cond):
        told.update(x=x, **cond)
        return Denoised(x + 2, torch.full_like(x, 10.0))

    terms = losses.Autoencoding(weighting.X0(), kl_weight=0.1, huber_delta=delta)(reconstruct, x_0, None, None, noise)
    assert told["x"] is x_0 and told["noise"] is noise  # the latents are noisy, the image is not
    assert terms.total.tolist() == pytest.approx([distance + 1.0] * 2) and terms.mse.tolist() == [4.0] * 2
