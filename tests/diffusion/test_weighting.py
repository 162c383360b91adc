"""Weightings against the table of facts: what each puts on the errors of x_0, the noise and v."""

import pytest
import torch

from ddpm_cli.diffusion import schedule, weighting
from ddpm_cli.diffusion.gaussian import NoiseLevel

LEVEL = schedule.linear().level(torch.tensor([1, 101, 260, 500, 1000]))
SNR = LEVEL.snr


def naive(name):
    return {
        "epsilon": SNR,
        "x0": torch.ones_like(SNR),
        "v": SNR + 1,
        "min_snr": SNR.clamp(max=5),
        "soft_min_snr": SNR * 4 / (SNR + 4),
        "p2": SNR / (1 + SNR),
        "edm": (1 / SNR + 0.25) / (0.25 / SNR),  # (sigma² + sigma_data²) / (sigma sigma_data)², sigma² = 1 / SNR
        "flow": (LEVEL.alpha + LEVEL.sigma) ** 2 / LEVEL.sigma**2,
    }[name]


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


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weight_is_the_published_formula(name):
    torch.testing.assert_close(WEIGHTINGS[name](LEVEL), naive(name))


def test_weights_at_index_100_are_the_published_values():
    level = schedule.linear().level(torch.tensor(101))
    assert float(level.snr) == pytest.approx(8.53667, rel=1e-5)
    assert float(weighting.MinSNR()(level) / level.snr) == pytest.approx(0.585709, rel=1e-5)
    assert float(weighting.MinSNR()(level) / (level.snr + 1)) == pytest.approx(0.524292, rel=1e-5)
    assert float(weighting.P2()(level) / level.snr) == pytest.approx(0.104858, rel=1e-5)


def test_every_weight_is_finite_at_zero_snr():
    level = NoiseLevel(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    for name, weight in {**WEIGHTINGS, "uncertainty": weighting.Uncertainty()}.items():
        assert weight(level).isfinite().all(), name
    assert weighting.Uncertainty().log_error(level).isfinite().all()


def test_uncertainty_finds_the_log_of_the_mean_error_at_each_level():
    learned, t = weighting.Uncertainty(), torch.arange(1, 1001, 8)
    level = schedule.edm().level(t)
    error = torch.where(t < 500, 0.05, 0.8).double()
    assert torch.equal(learned.balance(error, level), error)  # u starts at 0
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        learned.balance(error, level).mean().backward()
        optimizer.step()
    u = learned.log_error(level).double()
    away = (t - 500).abs() > 100  # from the jump, which smooth features round
    assert (u - error.log())[away].abs().median() < 0.3
    assert sorted(learned.state_dict()) == ["frequencies", "phases", "weight"]
