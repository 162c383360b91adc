"""The plain encoder-decoder."""

import pytest
import torch

from ddpm_cli.models.cnn import CNN


def cnn(**changes):
    return CNN(
        **(
            {"in_channels": 1, "out_channels": 1, "num_classes": 3, "class_conditional": True, "channels": [8, 16]}
            | changes
        )
    )


@pytest.mark.parametrize("size", [(1, 1), (5, 8), (28, 28), (31, 17)])
@pytest.mark.parametrize("channels", [[8], [8, 16], [8, 16, 16]])
def test_any_size_works(size, channels):
    network = cnn(channels=channels)
    network.check_input((1, *size))
    assert network(torch.randn(2, 1, *size), torch.rand(2), None).shape == (2, 1, *size)


@torch.no_grad()
def test_time_and_class_change_the_output():
    network = cnn()
    x, time, labels = torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([0, 1])
    output = network(x, time, {"labels": labels})
    assert not torch.allclose(output, network(x, time + 100, {"labels": labels}))
    assert not torch.allclose(output, network(x, time, None))
    torch.testing.assert_close(output, network(x, time, {"embedding": network.embed_labels(labels)}))


def test_empty_channels_are_refused():
    with pytest.raises(ValueError, match=r"model.channels .* got \[3\]; e.g. \[64,128\]"):
        cnn(channels=[3])
