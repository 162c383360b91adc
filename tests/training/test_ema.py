import torch

from ddpm_cli.training.ema import EMA


def test_average_follows_the_recursion_and_copies_buffers():
    network = torch.nn.BatchNorm1d(2)
    ema = EMA(network, 0.9, warmup=False)
    expected = network.weight.detach().clone()
    for step in range(1, 5):
        with torch.no_grad():
            network.weight.add_(torch.tensor([1.0, -2.0]))
            network.running_mean.fill_(step)
        ema.update(network, step)
        expected = 0.9 * expected + 0.1 * network.weight.detach()
        torch.testing.assert_close(ema.network.weight, expected)
        assert ema.network.running_mean.eq(step).all()


def test_warm_up_starts_low_and_never_exceeds_the_decay():
    ema = EMA(torch.nn.Linear(1, 1), 0.999)
    decays = [ema.decay_at(step) for step in (0, 1, 10, 100, 10_000)]
    assert decays == sorted(decays) and decays[0] == 0.1 and decays[-1] == 0.999


def test_average_is_a_copy_that_is_not_trained():
    network = torch.nn.Linear(2, 2)
    ema = EMA(network, 0.5)
    assert not any(p.requires_grad for p in ema.network.parameters())
    assert ema.network.weight.data_ptr() != network.weight.data_ptr()
