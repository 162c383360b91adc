"""The embedded digits."""

import pytest
import torch

from ddpm_cli.data.digits import digits
from ddpm_cli.errors import UserError

YAML = {"split": "train", "channels": 1, "image_size": 8, "num_classes": 10}


def test_every_sixth_digit_is_for_testing():
    everything = digits(**{**YAML, "split": "all"})
    train, test = digits(**YAML), digits(**{**YAML, "split": "test"})
    assert (len(everything), len(train), len(test)) == (1797, 1498, 299)
    assert torch.equal(test.items, everything.items[5::6]) and torch.equal(test.labels, everything.labels[5::6])
    assert len({everything.fingerprint, train.fingerprint, test.fingerprint}) == 3


def test_values_are_spread_over_all_bytes():
    from sklearn.datasets import load_digits

    items = digits(**{**YAML, "split": "all"}).items
    assert items.dtype == torch.uint8 and items.shape == (1797, 1, 8, 8)
    assert items.flatten().tolist() == [round(v * 255 / 16) for v in load_digits().images.flatten()]


def test_other_sizes_and_colour():
    store = digits(**{**YAML, "channels": 3, "image_size": 16})
    assert store.item_shape == (3, 16, 16)
    assert torch.equal(store.items[:, 0], store.items[:, 2])


def test_labels_can_be_left_out():
    store = digits(**{**YAML, "num_classes": 0})
    assert store.labels is None and store.num_classes == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("channels", value) for value in (0, 2, "3", None)),
        *(("image_size", value) for value in (10**9, 8000)),
        *(("num_classes", value) for value in (9, 11, -1, "10")),
    ],
)
def test_bad_values_name_the_key(key, value):
    with pytest.raises(UserError, match=rf"^dataset.*{key}"):
        digits(**{**YAML, key: value})


def test_unknown_keys_are_refused():
    with pytest.raises(TypeError):
        digits(**YAML, root="data")
