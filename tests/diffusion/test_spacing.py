"""The times a sampler visits, and what a spacing or a sampler refuses on a schedule it cannot serve."""

import pytest
import torch
from doubles import exact_gaussian

from ddpm_cli.diffusion import samplers, schedule, variance

LINEAR, EDM = schedule.linear(), schedule.edm()
ZERO = schedule.zero_terminal_snr(schedule.linear())


@pytest.mark.parametrize("noise_schedule", [LINEAR, EDM], ids=["linear", "edm"])
@pytest.mark.parametrize("num_steps", [1, 2, 18, 100, 3000])
@pytest.mark.parametrize("spacing", ["karras", "log_snr"])
def test_real_spacings_fall_from_T_through_1_to_0(noise_schedule, spacing, num_steps):
    times = noise_schedule.times(num_steps, spacing)
    assert len(times) == num_steps + 1 and times[0] == 1000 and times[-1] == 0
    assert (times.diff() < 0).all() and (num_steps == 1 or times[-2] == 1)


def test_karras_is_linear_in_the_seventh_root_and_log_snr_in_the_log_snr():
    level = LINEAR.level(LINEAR.times(20, "karras")[:-1])
    root = (level.sigma / level.alpha) ** (1 / 7)
    torch.testing.assert_close(root.diff(), root.diff().mean().expand(19), rtol=1e-6, atol=0)
    for times in (LINEAR.times(20, "log_snr")[:-1], LINEAR.times(19, "log_snr_to_1")):
        steps = LINEAR.level(times).log_snr.diff()
        torch.testing.assert_close(steps, steps.mean().expand(19), rtol=1e-6, atol=0)


@pytest.mark.parametrize("noise_schedule", [LINEAR, EDM, schedule.rectified_flow()], ids=["linear", "edm", "flow"])
def test_log_snr_by_steps_is_as_fine_as_its_steps_are_many(noise_schedule):
    for num_steps in (2, 10, 20):
        times = noise_schedule.times(num_steps, "log_snr_by_steps")
        level = noise_schedule.level(times[:-1])
        assert float(level.sigma[-1] / level.alpha[-1]) == pytest.approx(0.4 / num_steps)
        torch.testing.assert_close(level.log_snr.diff(), level.log_snr.diff().mean().expand(num_steps - 1))
        assert times[-1] == 0 and times[0] == noise_schedule.times(num_steps, "log_snr")[0]
    assert torch.equal(noise_schedule.times(500, "log_snr_by_steps"), noise_schedule.times(500, "log_snr"))


def test_log_snr_by_steps_walks_half_the_range_of_a_schedule_with_little_noise():
    faint = schedule.edm(sigma_min=0.001, sigma_max=0.1)
    times = faint.times(2, "log_snr_by_steps")
    assert (times.diff() < 0).all() and float(faint.level(times[1]).sigma) == pytest.approx(0.01)


def test_levels_without_a_trace_of_signal_are_passed_over():
    cosine = schedule.cosine()
    for spacing in ("karras", "log_snr"):
        level = cosine.level(cosine.times(18, spacing)[0])
        assert float(level.sigma / level.alpha) == pytest.approx(160)


def test_a_walk_starts_at_the_noise_that_x_T_is_scaled_to():
    loud = schedule.edm(sigma_max=300.0)
    assert float(loud.level(loud.times(18)[0]).sigma) == pytest.approx(loud.prior_scale) == 300


def test_a_list_is_taken_as_it_stands():
    assert LINEAR.times(None, [1000, 500.5, 1, 0]).tolist() == [1000, 500.5, 1, 0]
    assert LINEAR.times(50, [300, 20]).tolist() == [300, 20]


@pytest.mark.parametrize("num_steps", [501, 600, 300, 400])
def test_leading_refuses_to_begin_from_noise_where_an_image_should_be(num_steps):
    with pytest.raises(ValueError, match="would begin at t = .* that divides .* or sampler.spacing=trailing"):
        LINEAR.times(num_steps, "leading")
    for fine in (1, 2, 3, 7, 18, 30, 70, 250, 500, 999, 1000):
        assert LINEAR.times(fine, "leading")[0] >= 1000 - 1000 / fine - 50


def test_rho_of_one_is_linear_in_sigma():
    level = EDM.level(EDM.times(20, "karras", rho=1.0)[:-1])
    torch.testing.assert_close(level.sigma.diff(), level.sigma.diff().mean().expand(19), rtol=1e-6, atol=0)


MULTISTEP = [samplers.DPMSolverPP, samplers.DPMSolverPPSDE, samplers.UniPC, samplers.GradientEstimation]


@pytest.mark.parametrize("make", [*MULTISTEP, samplers.DPM2, samplers.Heun])
def test_a_sampler_takes_the_spacing_it_favours_where_the_schedule_has_all_levels(make):
    assert make(10).spacing_on(LINEAR) == make(10).spacing_on(EDM) == "log_snr_by_steps"
    assert make(10).spacing_on(ZERO) == "trailing" and make(10, "karras").spacing_on(LINEAR) == "karras"
    assert torch.equal(make(10, "karras", rho=3.0).times(LINEAR), LINEAR.times(10, "karras", 3.0))
    assert samplers.DDIM(10).spacing_on(LINEAR) == "trailing" and samplers.DDIM(10).spacing_on(EDM) == "karras"


@pytest.mark.parametrize("times", [[500], [500, 500, 0], [1001, 0], [500, 0.5, 0], [0, 500], [500, -1]])
def test_a_list_that_is_no_walk_is_refused(times):
    with pytest.raises(ValueError, match="sampler.spacing as a list must fall"):
        LINEAR.times(None, times)


@pytest.mark.parametrize("spacing", ["karras", "log_snr", "log_snr_by_steps", "log_snr_to_1"])
def test_level_spacings_refuse_an_infinite_level_in_one_line(spacing):
    with pytest.raises(ValueError, match="sampler.spacing=trailing") as caught:
        ZERO.times(10, spacing)
    assert "\n" not in str(caught.value)


def test_edms_schedule_has_karras_spacing_by_itself():
    assert torch.equal(EDM.times(18), EDM.times(18, "karras"))


IN_SIGMA = {"heun": samplers.Heun, "dpm2": samplers.DPM2, "edm": samplers.ChurnedHeun}


@pytest.mark.parametrize("spacing", ["trailing", "karras", "log_snr", "log_snr_to_1", None, [1000, 500, 0]], ids=str)
@pytest.mark.parametrize("option", IN_SIGMA)
def test_samplers_in_sigma_refuse_zero_terminal_snr_with_a_remedy_that_serves(option, spacing):
    with pytest.raises(ValueError, match=f"sampler={option} .* zero terminal SNR; choose sampler=ddim") as caught:
        IN_SIGMA[option](10, spacing)(None, torch.zeros(1), ZERO, None, None)
    assert "\n" not in str(caught.value) and "with sampler.spacing=trailing" in str(caught.value)
    for other in (samplers.DDIM, samplers.DPMSolverPP, samplers.UniPC):
        other(10, "trailing")(None, torch.zeros(1), ZERO, None, None)


@pytest.mark.parametrize("option", IN_SIGMA)
def test_they_serve_a_walk_that_never_visits_the_pure_noise(option):
    for spacing in ("leading", [900, 500, 0]):
        IN_SIGMA[option](10, spacing)(None, torch.zeros(1), ZERO, None, None)


@pytest.mark.parametrize(
    "sampler",
    [
        samplers.Ancestral(100),
        samplers.DDIM(100),
        samplers.Euler(100, "trailing"),
        samplers.DPMSolverPP(100),
        samplers.DPMSolverPPSDE(100),
        samplers.UniPC(100),
        samplers.UniPC(100, order=3),
        samplers.GradientEstimation(100),
        samplers.DPMSolverPP(2),
        samplers.UniPC(2),
    ],
    ids=repr,
)
def test_the_others_start_without_any_signal(sampler):
    def noise(i):
        return torch.randn(5000, 1, generator=torch.Generator().manual_seed(i + 1), dtype=torch.float64)

    x = samplers.run(sampler(exact_gaussian(ZERO, 0.3, 0.5), noise(-1), ZERO, variance.FixedSmall(), noise))
    assert x.isfinite().all()
    if sampler.num_steps == 100:
        assert abs(float(x.mean()) - 0.3) < 0.03 and abs(float(x.std()) - 0.5) < 0.05
