"""Where training looks: each distribution has its law, and importance keeps the mean."""

import math

import pytest
import torch

from ddpm_cli.diffusion import schedule, timesteps


def uniform(count, seed=0):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def test_log_normal_has_its_law_on_edms_schedule_and_on_a_table():
    u = uniform(100_000)
    for noise_schedule in (schedule.edm(), schedule.cosine()):
        t, importance = timesteps.LogNormal()(u, noise_schedule)
        log_sigma = -noise_schedule.level(t).log_snr / 2
        assert log_sigma.mean() == pytest.approx(-1.2, abs=0.02) and log_sigma.std() == pytest.approx(1.2, abs=0.02)
        assert (importance == 1).all() and t.min() >= 1 and t.max() <= 1000
        assert t.is_floating_point()


SOME = [schedule.edm(), schedule.cosine(), schedule.rectified_flow(), schedule.laplace()]


@pytest.mark.parametrize("noise_schedule", SOME, ids=["edm", "cosine", "rectified_flow", "laplace"])
def test_laws_are_of_the_level_and_not_of_the_schedule(noise_schedule):
    u = uniform(100_000)
    log_snr = noise_schedule.level(timesteps.Laplace(1.0, 0.4)(u, noise_schedule)[0]).log_snr
    assert log_snr.mean() == pytest.approx(1.0, abs=0.02) and (log_snr - 1).abs().mean() == pytest.approx(0.4, abs=0.02)
    level = noise_schedule.level(timesteps.LogitNormal(0.3, 0.8)(u, noise_schedule)[0])
    logit = (level.sigma / level.alpha).log()  # of the share of noise sigma / (alpha + sigma)
    assert logit.mean() == pytest.approx(0.3, abs=0.02) and logit.std() == pytest.approx(0.8, abs=0.02)
    level = noise_schedule.level(timesteps.Cosine(shift=-1.0)(u, noise_schedule)[0])
    angle = torch.atan((level.sigma / level.alpha) * math.exp(-0.5)) / (math.pi / 2)  # uniform where it is not cut off
    for share in (0.1, 0.3, 0.5, 0.8):
        assert (angle < share).double().mean() == pytest.approx(share, abs=0.01)


def test_logit_normal_on_a_rectified_flow_is_its_time():
    noise_schedule = schedule.rectified_flow()
    t, _ = timesteps.LogitNormal()(uniform(100_000), noise_schedule)
    share = noise_schedule.level(t).sigma
    assert share.logit().std() == pytest.approx(1.0, abs=0.02) and share.median() == pytest.approx(0.5, abs=0.01)


def test_log_normal_moves_with_the_datas_standard_deviation():
    u, noise_schedule = uniform(100_000), schedule.edm(sigma_data=0.125)
    t, _ = timesteps.LogNormal(sigma_data=0.125)(u, noise_schedule)
    assert (-noise_schedule.level(t).log_snr / 2).mean() == pytest.approx(-1.2 - math.log(4), abs=0.02)
    torch.testing.assert_close(t, timesteps.LogNormal()(u, schedule.edm())[0])


def test_log_normal_survives_the_ends_of_the_unit_interval():
    t, _ = timesteps.LogNormal()(torch.tensor([0.0, 1 - 2**-24]), schedule.edm())
    assert t.isfinite().all()


def filled(num_timesteps, losses, history=10):
    """A LossSecondMoment that has seen losses(t) at every t often enough."""
    sampler = timesteps.LossSecondMoment(num_timesteps, history)
    t = torch.arange(1, num_timesteps + 1).repeat(history)
    sampler.observe(t, losses(t))
    return sampler


def test_loss_second_moment_is_uniform_until_every_t_is_known():
    sampler = timesteps.LossSecondMoment(20, history=2)
    sampler.observe(torch.arange(1, 20).repeat(2), torch.full((38,), 7.0))  # t = 20 is missing
    t, importance = sampler(uniform(40), schedule.cosine(20))
    assert t.bincount(minlength=21)[1:].tolist() == [2] * 20 and (importance == 1).all()
    sampler.observe(torch.tensor([20, 20]), torch.tensor([70.0, 70.0]))
    assert float(sampler.probabilities()[19]) > 0.3


def test_loss_second_moment_draws_by_the_root_of_the_second_moment():
    sampler = filled(10, lambda t: t.float())
    expected = 0.999 * torch.arange(1, 11).double() / 55 + 0.001 / 10
    torch.testing.assert_close(sampler.probabilities(), expected)
    t, _ = sampler(uniform(5000), schedule.cosine(10))
    torch.testing.assert_close(t.bincount(minlength=11)[1:] / 5000, expected.float(), rtol=0, atol=4e-4)


def test_importance_keeps_the_mean_over_all_t():
    sampler, noise_schedule = filled(100, lambda t: 1 / t.float()), schedule.cosine(100)
    truth = (1 / torch.arange(1, 101).double()).mean()
    t, importance = sampler(uniform(20_000), noise_schedule)
    assert float((importance * (1 / t)).mean()) == pytest.approx(float(truth), rel=1e-3)


def naive_observe(history, t, loss):
    """The last `history` losses at each t, one after another."""
    kept = {}
    for k, v in zip(t.tolist(), loss.tolist(), strict=True):
        kept[k] = [*kept.get(k, []), v][-history:]
    return kept


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_observe_keeps_the_last_losses_as_one_after_another(batch):
    sampler, generator = timesteps.LossSecondMoment(5, history=4), torch.Generator().manual_seed(batch)
    t = torch.randint(1, 6, (128,), generator=generator)
    loss = torch.rand(128, generator=generator)
    for start in range(0, 128, batch):
        sampler.observe(t[start : start + batch], loss[start : start + batch])
    for k, expected in naive_observe(4, t, loss).items():
        assert sorted(sampler.losses[k].tolist()) == pytest.approx(sorted(expected))
    assert sampler.losses[0].eq(0).all()


def test_state_of_loss_second_moment_is_in_its_state_dict():
    sampler, again = filled(10, lambda t: t.float()), timesteps.LossSecondMoment(10)
    again.load_state_dict(sampler.state_dict())
    torch.testing.assert_close(again.probabilities(), sampler.probabilities(), rtol=0, atol=0)
    assert math.isclose(float(again.probabilities().sum()), 1, rel_tol=1e-12)
