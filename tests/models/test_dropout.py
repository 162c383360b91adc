"""Dropout that cuts its masks out of fewer random numbers."""

import pytest
import torch

from ddpm_cli.models.dropout import dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_each_value_is_dropped_with_its_probability_and_the_rest_scaled(p, dtype):
    torch.manual_seed(0)
    x = torch.full((1001, 7, 11, 3), 3.0, dtype=dtype, requires_grad=True)  # no multiple of four
    out = dropout(x, p, True)
    out.sum().backward()
    kept = out != 0
    shares = kept.double().mean(dim=(0, 1)).flatten()  # by place, among the four of a number too
    assert (shares - (1 - p)).abs().max() < 5 * (p * (1 - p) / 7007) ** 0.5
    expected = (x.detach() / (1 - p)).where(kept, 0)
    torch.testing.assert_close(out, expected, rtol=0.01 if dtype == torch.bfloat16 else 1e-4, atol=0)
    torch.testing.assert_close(x.grad, out.detach() / 3, rtol=0.01, atol=0)
    values = kept.flatten()[: 4 * (kept.numel() // 4)].view(-1, 4).double()
    together = torch.corrcoef(values.T) - torch.eye(4)
    assert together.abs().max() < 0.02  # those of one number know nothing of each other


def test_it_is_a_function_of_the_generator_and_does_nothing_where_there_is_nothing_to_do():
    x = torch.randn(5, 3)
    drawn = [dropout(x, 0.3, True) for _ in range(2) if torch.manual_seed(4)]
    assert torch.equal(*drawn)
    assert dropout(x, 0.3, False) is x and dropout(x, 0.0, True).equal(x)
    state = torch.get_rng_state()
    dropout(x, 0.0, True)
    assert torch.equal(state, torch.get_rng_state())
