import pytest
import torch

from ddpm_cli.training.ema import EMA, Constant, HalfLife, gamma_of, mixing, power_decay


def test_average_follows_the_recursion_and_copies_buffers():
    network = torch.nn.BatchNorm1d(2)
    ema = EMA(network, Constant(0.9, warmup=False))
    expected = network.weight.detach().clone()
    for step in range(1, 5):
        with torch.no_grad():
            network.weight.add_(torch.tensor([1.0, -2.0]))
            network.running_mean.fill_(step)
        ema.update(step)
        expected = 0.9 * expected + 0.1 * network.weight.detach()
        torch.testing.assert_close(ema.network.weight, expected)
        assert ema.network.running_mean.eq(step).all()


def test_warm_up_starts_low_and_never_exceeds_the_decay():
    ema = EMA(torch.nn.Linear(1, 1), Constant(0.999))
    decays = [ema.decay_at(step) for step in (0, 1, 10, 100, 10_000)]
    assert decays == sorted(decays) and decays[0] == 0.1 and decays[-1] == 0.999


def test_average_is_a_copy_that_is_not_trained():
    network = torch.nn.Linear(2, 2)
    ema = EMA(network, Constant(0.5))
    assert not any(p.requires_grad for p in ema.network.parameters())
    assert ema.network.weight.data_ptr() != network.weight.data_ptr()


def test_a_half_life_is_at_most_a_share_of_the_images_seen():
    decay = HalfLife(half_life=1000, ramp=0.05).decays(batch_size=10)["ema"]
    assert decay(0) == 0.0
    assert decay(200) == pytest.approx(0.5 ** (1 / 10))  # of 2,000 images seen 100 are 10 steps
    assert decay(10**6) == pytest.approx(0.5 ** (10 / 1000))


@pytest.mark.parametrize(("length", "gamma"), [(0.01, 96.995), (0.05, 16.9722), (0.10, 6.9372), (0.20, 1.8262)])
def test_a_power_has_the_published_length(length, gamma):
    assert gamma_of(length) == pytest.approx(gamma, rel=1e-4)
    time = torch.linspace(0, 1, 100_001, dtype=torch.float64)  # of the run; the profile is (gamma + 1) t^gamma
    mean = ((gamma + 1) * time**gamma * time).mean()
    std = ((gamma + 1) * time**gamma * (time - mean) ** 2).mean().sqrt()
    assert float(std) == pytest.approx(length, rel=2e-3)


def tracked(length, walk):
    """The average of a walk, one value a step, as it stands after each."""
    decay, average, found = power_decay(length), torch.zeros(()).double(), []
    for step, value in enumerate(walk, 1):
        average = torch.lerp(value, average, decay(step))
        found.append(average)
    return torch.stack(found)


def test_a_power_average_weighs_the_past_by_its_profile():
    walk = torch.arange(1, 2001).double() / 2000
    gamma = gamma_of(0.1)
    assert float(tracked(0.1, walk)[-1]) == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-3)  # the mean time


def test_other_lengths_are_rebuilt_from_snapshots_and_the_better_the_more_there_are():
    steps = 2048
    walk = torch.randn(steps, generator=torch.Generator().manual_seed(0)).double().cumsum(0) / steps**0.5
    short, long = tracked(0.05, walk), tracked(0.10, walk)
    for length in (0.03, 0.07, 0.15):
        truth, errors = tracked(length, walk)[-1], []
        for count in (8, 64):
            at = torch.arange(1, count + 1) * (steps // count)
            places = [(float(t), gamma_of(width)) for t in at for width in (0.05, 0.10)]
            kept = torch.stack([short[at - 1], long[at - 1]], 1).flatten()
            weights = mixing(places, (steps, gamma_of(length)))
            assert weights.sum() == pytest.approx(1)
            errors.append(float((kept * torch.from_numpy(weights)).sum() - truth) / float(walk.std()))
        assert abs(errors[1]) < 0.01 and abs(errors[1]) < abs(errors[0]) + 1e-4, (length, errors)


def test_a_tracked_length_is_its_own_mixture():
    places = [(step, gamma_of(width)) for step in (500.0, 1000.0) for width in (0.05, 0.10)]
    assert mixing(places, (1000.0, gamma_of(0.10))) == pytest.approx([0, 0, 0, 1], abs=1e-6)
