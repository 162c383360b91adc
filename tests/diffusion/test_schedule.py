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
