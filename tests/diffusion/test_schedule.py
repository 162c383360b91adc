import pytest
import torch

from ddpm_cli.diffusion import schedule


def test_linear_has_the_published_values():
    alpha_bar = schedule.linear().alpha_bar
    assert alpha_bar.dtype == torch.float64 and alpha_bar.shape == (1001,) and alpha_bar[0] == 1
    for t, value in {
        1: 0.9999,
        2: 0.99978009207,
        250: 0.52408537383,
        500: 0.078587242882,
        1000: 4.0358297654e-5,
    }.items():
        assert float(alpha_bar[t]) == pytest.approx(value, rel=1e-10)


def test_cosine_has_the_published_values():
    alpha_bar = schedule.cosine().alpha_bar
    values = {1: 0.99995871578, 250: 0.84701216133, 500: 0.49384359044, 750: 0.14427210239, 1000: 2.4287669e-9}
    for t, value in values.items():
        assert float(alpha_bar[t]) == pytest.approx(value, rel=1e-7)
    assert float(schedule.cosine(4000).alpha_bar[-1]) == pytest.approx(1.5179805e-10, rel=1e-6)


@pytest.mark.parametrize("make", [schedule.linear, schedule.cosine])
def test_real_times_agree_with_rows_and_lie_between_them(make):
    noise = make(100)
    rows = torch.arange(101)
    whole, real = noise.level(rows), noise.level(rows.double())
    torch.testing.assert_close(real.alpha, whole.alpha, rtol=0, atol=0)
    half = noise.level(torch.arange(1, 100).double() + 0.5)
    torch.testing.assert_close(half.log_snr, (whole.log_snr[1:-1] + whole.log_snr[2:]) / 2, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(half.alpha**2 + half.sigma**2, torch.ones(99, dtype=torch.float64))


@pytest.mark.parametrize("make", [schedule.linear, schedule.cosine])
def test_time_of_inverts_level(make):
    noise = make(1000)
    t = torch.tensor([1.0, 1.5, 2.0, 77.25, 500.0, 999.9, 1000.0], dtype=torch.float64)
    torch.testing.assert_close(noise.time_of(noise.level(t).log_snr), t, rtol=1e-9, atol=1e-9)
    assert noise.time_of(torch.tensor([1e9, -1e9], dtype=torch.float64)).tolist() == [1.0, 1000.0]


def test_a_rectified_flow_is_a_straight_line_that_a_shift_bends():
    noise = schedule.rectified_flow(100)
    level = noise.level(torch.arange(0, 101))
    torch.testing.assert_close(level.alpha + level.sigma, torch.ones(101, dtype=torch.float64))
    torch.testing.assert_close(level.sigma, torch.arange(0, 101).double() / 100 * 160 / 161)
    torch.testing.assert_close(noise.network_time(torch.tensor([50])), 1000 * level.sigma[50:51])
    shifted = schedule.rectified_flow(100, shift=3.0).level(torch.arange(1, 101))
    share = torch.arange(1, 101).double() / 100 * (160 / 3) / (1 + 160 / 3)  # Esser et al. 2024, Eq. 23
    torch.testing.assert_close(shifted.sigma, 3 * share / (1 + 2 * share))
    half = noise.level(torch.arange(1, 100).double() + 0.5)
    torch.testing.assert_close(half.alpha + half.sigma, torch.ones(99, dtype=torch.float64))
    assert noise.prior(torch.ones(1)).item() == pytest.approx(160 / 161)


def test_a_time_for_the_network_leaves_levels_and_walks_as_they_are():
    noise = schedule.laplace(100)
    told = schedule.rescaled_time(noise)
    assert torch.equal(told.alpha, noise.alpha) and torch.equal(told.times(10), noise.times(10))


def test_spacings_are_the_published_lists():
    noise = schedule.linear()
    assert noise.times(10, "leading").tolist() == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, 0]
    assert noise.times(10, "trailing").tolist() == [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert noise.times(10, "linspace").tolist() == [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1, 0]
    assert noise.times().tolist() == list(range(1000, -1, -1))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 99, 100])
def test_every_spacing_descends_strictly_to_zero(spacing, num_steps):
    times = schedule.cosine(100).times(num_steps, spacing)
    assert len(times) == num_steps + 1 and times[-1] == 0 and times[0] <= 100 and (times.diff() < 0).all()


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_too_few_or_many_steps_are_refused_by_name(num_steps):
    with pytest.raises(ValueError, match=r"sampler.num_steps must lie in 1..1000"):
        schedule.linear().times(num_steps)


def test_impossible_betas_are_refused():
    with pytest.raises(ValueError, match="every beta must lie in"):
        schedule.linear(10)  # rescaled by 100, beta_end would be 2
    with pytest.raises(ValueError, match="sampler.spacing"):
        schedule.cosine().times(5, "nope")


def test_networks_embed_the_raw_index():
    assert schedule.linear().network_time(torch.tensor([1, 1000])).tolist() == [0.0, 999.0]


TABLES = {
    "linear": schedule.linear(),
    "scaled_linear": schedule.scaled_linear(),
    "quadratic": schedule.scaled_linear(1000, 1e-4, 0.02),
    "constant": schedule.constant(),
    "cosine": schedule.cosine(),
    "sigmoid": schedule.sigmoid(),
    "laplace": schedule.laplace(),
    "cosine_log_snr": schedule.cosine_log_snr(),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_table_falls_from_the_clean_image_and_preserves_the_variance(name):
    noise = TABLES[name]
    assert noise.num_timesteps == 1000 and noise.alpha[0] == 1 and noise.sigma[0] == 0
    assert (noise.alpha.diff() < 0).all() and (noise.sigma.diff() > 0).all()
    torch.testing.assert_close(noise.alpha**2 + noise.sigma**2, torch.ones(1001, dtype=torch.float64))


def test_scaled_linear_is_that_of_stable_diffusion():
    alpha_bar = schedule.scaled_linear().alpha_bar
    assert float(alpha_bar[1]) == pytest.approx(0.99915, rel=1e-12)
    assert float(alpha_bar[1000]) == pytest.approx(0.0046599, rel=1e-4)  # diffusers' DDIMScheduler, scaled_linear


def test_constant_is_a_geometric_fall():
    torch.testing.assert_close(schedule.constant().alpha_bar, 0.99 ** torch.arange(1001).double(), rtol=1e-10, atol=0)


def test_sigmoid_is_the_published_function_below_its_clipped_end():
    u, noise = torch.arange(1001).double() / 1000, schedule.sigmoid()  # Jabri et al. 2022, Algorithm 1
    gamma = torch.sigmoid(-3 + 6 * u)
    expected = (torch.sigmoid(torch.tensor(3.0).double()) - gamma) / (gamma[-1] - gamma[0])
    torch.testing.assert_close(noise.alpha_bar[:-1], expected[:-1], rtol=1e-9, atol=0)
    assert noise.alpha_bar[-1] > 0


def test_log_snr_of_laplace_has_its_law():
    noise = schedule.laplace(10_001, mean=-1.0, scale=0.5)
    log_snr = noise.level(torch.arange(1, 10_002)).log_snr
    law = torch.distributions.Laplace(torch.tensor(-1.0).double(), torch.tensor(0.5).double())
    for share in (0.1, 0.5, 0.9):
        assert float(log_snr[int(10_000 * share)]) == pytest.approx(float(law.icdf(torch.tensor(1 - share))), abs=1e-5)
    assert log_snr[0] == pytest.approx(10) and log_snr[-1] == pytest.approx(-10)


def test_resolution_shifts_the_cosine_in_log_snr():
    plain, t = schedule.cosine_log_snr(1000), torch.arange(1, 1001)
    for size, factor in ((64, 1.0), (128, 4.0), ([32, 128], 1.0)):
        shifted = schedule.cosine_log_snr(1000, image_size=size)
        torch.testing.assert_close(shifted.level(t).snr * factor, plain.level(t).snr, rtol=1e-7, atol=0)
    u = (t.double() - 1) / 999  # between 1e-3 and 1 - 1e-3 the ends matter little: -2 ln tan(pi u / 2)
    cosine = -2 * torch.tan(torch.pi / 2 * u[100:900]).log()
    torch.testing.assert_close(plain.level(t[100:900]).log_snr, cosine, rtol=0, atol=2e-2)


def test_a_table_from_numbers_is_the_schedule_they_came_from():
    for name, noise in TABLES.items():
        rows = torch.arange(1, 1001)
        numbers = {"alpha_bar": noise.alpha_bar[1:], "log_snr": noise.level(rows).log_snr}
        for holds, values in numbers.items():
            again = schedule.table(values.tolist(), holds)
            torch.testing.assert_close(again.alpha, noise.alpha, rtol=1e-9, atol=0, msg=name)
    with pytest.raises(ValueError, match="0.9 at t = 1 and 0.95 at t = 2"):
        schedule.table([0.9, 0.95, 0.1])
    with pytest.raises(ValueError, match="from 0.0001 to 0.02, as betas do; set schedule.holds=beta"):
        schedule.table(torch.linspace(1e-4, 0.02, 50).tolist())
    with pytest.raises(ValueError, match="schedule.holds"):
        schedule.table([0.9, 1.5])


@pytest.mark.parametrize("name", TABLES)
def test_zero_terminal_snr_keeps_the_first_level_and_ends_in_noise(name):
    zero, first = schedule.zero_terminal_snr(TABLES[name]), TABLES[name].level(1)
    assert zero.zero_terminal_snr and zero.alpha[-1] == 0 and zero.sigma[-1] == 1
    assert float(zero.level(1).alpha) == pytest.approx(float(first.alpha), rel=1e-12)
    assert (zero.alpha.diff() < 0).all()
    level = zero.level(torch.tensor([999.5, 1000.0]))
    assert level.alpha.isfinite().all() and level.sigma.isfinite().all()


def test_zero_terminal_snr_has_the_published_values():
    alpha_bar = schedule.zero_terminal_snr(schedule.linear()).alpha_bar
    assert float(alpha_bar[500]) == pytest.approx(0.0760288, rel=1e-5)  # Lin et al. 2023, Algorithm 1
    assert float(alpha_bar[999]) == pytest.approx(4.213e-9, rel=1e-3)


def test_rescaled_time_is_that_of_a_thousand_steps():
    noise = schedule.rescaled_time(schedule.cosine(4000))
    assert noise.network_time(torch.tensor([1, 2001, 4000])).tolist() == [0.0, 500.0, 999.75]
    assert torch.equal(noise.alpha, schedule.cosine(4000).alpha)


def test_edm_runs_from_sigma_min_to_sigma_max_in_real_time():
    noise = schedule.edm()
    assert noise.level(torch.tensor([1, 1000])).sigma.tolist() == pytest.approx([0.002, 80.0])
    sigma = torch.tensor([0.002, 0.05, 0.5, 1.0, 7.0, 80.0], dtype=torch.float64)
    level = noise.level(noise.time_of(-2 * sigma.log()))
    torch.testing.assert_close(level.sigma, sigma, rtol=1e-9, atol=0)
    assert (level.alpha == 1).all()
    smaller = schedule.edm(sigma_data=0.25)
    assert smaller.level(torch.tensor([1, 1000])).sigma.tolist() == pytest.approx([0.001, 40.0])
    assert smaller.prior(torch.ones(1)).item() == pytest.approx(40.0)
