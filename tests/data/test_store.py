"""The store: ranges, round trips, and the checks of labels."""

import pytest
import torch

from ddpm_cli.data.store import Store
from ddpm_cli.errors import UserError
from ddpm_cli.media.images import Images


def store(items, labels=None, class_names=()):
    return Store(items, labels, class_names, "toy", "0")


def all_bytes():
    return torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)


def test_bytes_survive_the_way_to_the_model_and_back():
    toy = store(all_bytes())
    assert torch.equal(Images((1, 8, 8)).to_file(toy.to_model(toy.items)), toy.items)


def test_model_range_is_minus_one_to_one():
    x = store(all_bytes()).to_model(all_bytes())
    assert x.dtype == torch.float32 and (x.min(), x.max()) == (-1, 1)
    torch.testing.assert_close(x, all_bytes().float() / 127.5 - 1, rtol=0, atol=1e-7)


def test_to_model_leaves_the_items_alone():
    toy = store(all_bytes())
    toy.to_model(toy.items)
    assert torch.equal(toy.items, all_bytes())


def test_to_file_rounds_and_clamps():
    x = torch.tensor([-9.0, -1, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1, 9])
    assert Images((1,)).to_file(x).tolist() == [0, 0, 0, 1, 255, 255]


def test_sound_in_floating_point_passes_as_it_is():
    sound = store(torch.linspace(-1, 1, 20, dtype=torch.float16).view(2, 1, 10))
    assert sound.item_shape == (1, 10)
    assert torch.equal(sound.to_model(sound.items), sound.items.float())


@pytest.mark.parametrize(
    ("labels", "class_names"),
    [
        (torch.tensor([0, 1, 2, 3]), ("a", "b")),
        (torch.tensor([0, -1, 0, 0]), ("a", "b")),
        (torch.tensor([0, 1]), ("a", "b")),
        (torch.tensor([0, 1, 0, 1], dtype=torch.int32), ("a", "b")),
        (torch.tensor([0, 1, 0, 1]), ()),
        (None, ("a",)),
    ],
)
def test_labels_that_do_not_match_are_refused(labels, class_names):
    with pytest.raises(UserError, match="labels"):
        store(all_bytes(), labels, class_names)


def test_an_empty_set_is_refused():
    with pytest.raises(UserError, match="no items"):
        store(torch.empty(0, 1, 8, 8, dtype=torch.uint8))
