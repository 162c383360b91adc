import pytest

from ddpm_cli.training.learning_rate import factor, told

DECAYS = ("none", "linear", "cosine", "inverse_sqrt")


@pytest.mark.parametrize("decay", DECAYS)
def test_warm_up_is_linear_and_reaches_one(decay):
    values = [factor(step, num_steps=1000, warmup_steps=10, decay=decay) for step in range(10)]
    assert values == pytest.approx([0.1 * k for k in range(1, 11)])


def test_decays_end_near_zero_and_none_stays():
    last = {decay: factor(999, num_steps=1000, warmup_steps=100, decay=decay) for decay in DECAYS}
    assert last["none"] == 1 and 0 < last["linear"] < 2e-3 and 0 < last["cosine"] < 1e-5


def test_the_inverse_square_root_falls_from_its_reference_on_however_long_the_run():
    rate = {"warmup_steps": 10, "decay": "inverse_sqrt", "reference_steps": 100}
    values = [factor(step, num_steps=1000, **rate) for step in range(1000)]
    assert values[4] == 0.5 and values[9:100] == [1.0] * 91
    assert values[399] == pytest.approx(0.5) and values[899] == pytest.approx(1 / 3)
    assert values == [factor(step, num_steps=50_000, **rate) for step in range(1000)]


def test_without_a_reference_the_inverse_square_root_falls_from_the_warm_up_on():
    rate = {"num_steps": 1000, "decay": "inverse_sqrt"}
    assert factor(99, warmup_steps=100, **rate) == 1 and factor(399, warmup_steps=100, **rate) == pytest.approx(0.5)
    assert factor(3, warmup_steps=0, **rate) == pytest.approx(0.5)
    assert "0.1 at step 399" in told(0.2, 399, warmup_steps=100, **rate)


@pytest.mark.parametrize("decay", DECAYS)
def test_no_warm_up_and_warm_up_beyond_the_end_are_defined(decay):
    assert factor(0, num_steps=10, warmup_steps=0, decay=decay) == 1
    assert 0 < factor(9, num_steps=10, warmup_steps=50, decay=decay) <= 1


def test_what_is_in_force_is_told_where_it_is_not_what_the_setting_says():
    rate = {"num_steps": 1000, "warmup_steps": 100, "decay": "cosine"}
    assert told(0.1, 0, **rate) is None
    assert told(0.1, 550, **rate) == (
        "the learning rate is 0.05 at step 550, of optimizer.lr=0.1, and 3.05e-07 at the end"
    )
    assert told(0.1, 500, num_steps=1000, warmup_steps=100, decay="none") is None
    assert "0.05 at step 49" in told(0.1, 49, num_steps=1000, warmup_steps=100, decay="none")
    short = told(0.1, 0, num_steps=40, warmup_steps=100, decay="none")
    assert short.startswith("optimizer.warmup_steps=100 is longer than the run of 40 steps") and "ends at 0.04" in short
