"""Every prediction gives x_0 back from the thing it predicts, and EDM's coefficients are the published ones."""

import numpy as np
import pytest
import torch

from ddpm_cli.diffusion import gaussian, prediction, schedule, variance, weighting
from ddpm_cli.diffusion.denoiser import Denoiser

SCHEDULES = {
    "linear": schedule.linear(),
    "cosine": schedule.cosine(),
    "zero": schedule.zero_terminal_snr(schedule.linear()),
    "edm": schedule.edm(),
    "rectified_flow": schedule.rectified_flow(),
}
T = torch.tensor([1, 2, 30, 500, 999, 1000])


def target_of(name, noise_schedule, x_0, x_t, noise, t):
    """What a perfect network would put out."""
    level, before = noise_schedule.level(t), noise_schedule.level(t - 1)
    alpha, sigma = gaussian.expand(level.alpha, x_0), gaussian.expand(level.sigma, x_0)
    if name == "v":
        return (alpha * noise - sigma * x_0) / (alpha**2 + sigma**2).sqrt()
    if name == "mean":
        return gaussian.posterior(x_t, x_0, level, before)[0]
    if name == "edm":  # Karras et al. 2022, Eq. 8, for x = x_t / alpha
        c_skip = 0.25 / ((sigma / alpha) ** 2 + 0.25)
        return (x_0 - c_skip * x_t / alpha) / (sigma / alpha * 0.5 / ((sigma / alpha) ** 2 + 0.25).sqrt())
    return {"epsilon": noise, "x0": x_0, "flow": noise - x_0}[name]


PREDICTIONS = {
    "epsilon": prediction.Epsilon(),
    "x0": prediction.X0(),
    "v": prediction.V(),
    "mean": prediction.Mean(),
    "edm": prediction.EDM(),
    "flow": prediction.Flow(),
}


@pytest.mark.parametrize("where", SCHEDULES)
@pytest.mark.parametrize("name", PREDICTIONS)
def test_the_perfect_output_gives_x_0_back(name, where):
    noise_schedule, predict = SCHEDULES[where], PREDICTIONS[name]
    if noise_schedule.zero_terminal_snr and predict.needs_signal:
        pytest.skip("refused")
    generator = torch.Generator().manual_seed(0)
    x_0, noise = (torch.randn(len(T), 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    level = noise_schedule.level(T)
    x_t = gaussian.diffuse(x_0, noise, level)
    c_skip, c_out, c_in = (gaussian.expand(c, x_t) for c in predict(level, noise_schedule.level(T - 1)))
    target = target_of(name, noise_schedule, x_0, x_t, noise, T)
    torch.testing.assert_close(c_skip * x_t + c_out * target, x_0, rtol=1e-6, atol=1e-6)
    if name == "flow":
        torch.testing.assert_close(c_in.flatten(), 1 / (level.alpha + level.sigma))
    elif name != "edm":
        torch.testing.assert_close(c_in.flatten(), (level.alpha**2 + level.sigma**2).rsqrt())


def test_edm_preconditioning_meets_the_reference(shared):
    ref = {
        k[8:]: torch.from_numpy(v) for k, v in np.load(shared / "vectors/edm.npz").items() if k.startswith("precond")
    }
    noise_schedule = schedule.edm()
    t = noise_schedule.time_of(-2 * ref["sigma"].log())
    level = noise_schedule.level(t)
    ours = dict(zip(("c_skip", "c_out", "c_in"), prediction.EDM()(level, level), strict=True))
    ours |= {"c_noise": noise_schedule.network_time(t), "loss_weight": weighting.EDM()(level)}
    for name, value in ours.items():
        torch.testing.assert_close(value, ref[name], rtol=1e-9, atol=1e-12, msg=name)


def test_edm_weighting_makes_the_loss_of_its_networks_output_plain():
    level = schedule.edm().level(torch.arange(1, 1001))
    c_out = prediction.EDM()(level, level)[1]
    torch.testing.assert_close(weighting.EDM()(level) * c_out**2, torch.ones_like(c_out))


def test_predictions_that_a_schedule_cannot_have_are_refused_with_the_remedy():
    network = torch.nn.Identity()
    for predict in (prediction.Epsilon(), prediction.EDM()):
        with pytest.raises(ValueError, match="choose prediction=v or prediction=x0"):
            Denoiser(network, SCHEDULES["zero"], predict, variance.FixedSmall())
    with pytest.raises(ValueError, match="choose prediction=edm or prediction=v"):
        Denoiser(network, SCHEDULES["edm"], prediction.Mean(), variance.FixedSmall())
