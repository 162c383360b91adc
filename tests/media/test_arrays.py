"""Images of any channels and kind of number: to the model and back, files, what is shown."""

import numpy as np
import pytest
import torch

from ddpm_cli.errors import UserError
from ddpm_cli.media.arrays import Arrays, from_int16, medium_of
from ddpm_cli.media.base import DecodeError
from ddpm_cli.media.images import Images

FLOATS = Arrays((2, 5, 7), "float32", ((-1.0, 3.0), (250.0, 310.0)))
WIDE = medium_of((3, 5, 7), "uint16")


def test_eight_bits_in_one_or_three_channels_are_plain_images():
    assert medium_of((3, 8, 8)) == Images((3, 8, 8)) == medium_of((3, 8, 8), "uint8", [0, 255])
    assert isinstance(medium_of((4, 8, 8)), Arrays) and isinstance(medium_of((3, 8, 8), "uint8", [0, 100]), Arrays)
    with pytest.raises(UserError, match=r"dataset\.range"):
        medium_of((3, 8, 8), "float32")


@pytest.mark.parametrize("medium", [FLOATS, WIDE, medium_of((4, 5, 7)), medium_of((1, 5, 7), "uint8", [10, 20])])
def test_files_and_model_are_one_way_and_back(medium):
    x = torch.rand(6, *medium.item_shape) * 2 - 1
    items = medium.to_file(x)
    assert items.dtype == medium.file_dtype
    low, high = torch.tensor(medium.range).T
    grain = 0 if medium.dtype == "float32" else 1 / (high - low).min()
    assert torch.allclose(medium.to_model(items), x, atol=float(grain) + 1e-5)
    assert torch.equal(medium.to_file(medium.to_model(items)), items) or medium.dtype == "float32"


def test_what_leaves_the_range_is_brought_to_its_ends():
    items = FLOATS.to_file(torch.tensor([-5.0, 5.0]).view(2, 1, 1, 1).expand(2, *FLOATS.item_shape))
    assert items[0, :, 0, 0].tolist() == [-1, 250] and items[1, :, 0, 0].tolist() == [3, 310]


def test_all_of_int16_is_the_models_range():
    numbers = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    x = from_int16(numbers)
    assert x[0] == -1 and x[-1] == 1 and torch.equal(x, -x.flip(0)) and len(x.unique()) == 65536


@pytest.mark.parametrize(("medium", "suffix"), [(FLOATS, ".npy"), (WIDE, ".png"), (medium_of((4, 5, 7)), ".npy")])
def test_a_file_holds_what_was_drawn(tmp_path, medium, suffix):
    item = medium.to_file(torch.rand(1, *medium.item_shape) * 2 - 1)[0]
    path = medium.save(item, tmp_path / f"0{medium.suffix}")
    assert path.suffix == suffix and torch.equal(medium.load(path), item)
    with pytest.raises(FileNotFoundError):
        medium.load(tmp_path / "1.npy")


def test_a_file_of_another_shape_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((7, 5, 2)))
    with pytest.raises(DecodeError, match=r"must be of shape \(5, 7, 2\), has \(7, 5, 2\)"):
        FLOATS.read(tmp_path / "a.npy")


def test_channels_that_are_no_colours_are_shown_side_by_side():
    items = FLOATS.to_file(torch.stack([torch.full((5, 7), -1.0), torch.full((5, 7), 1.0)])[None])
    (picture,) = FLOATS.pictures(items)
    assert picture.shape == (1, 5, 14) and (picture[0, :, :7] == 0).all() and (picture[0, :, 7:] == 255).all()
    assert WIDE.pictures(WIDE.to_file(torch.zeros(1, *WIDE.item_shape))).unique().tolist() == [128]


def test_arrays_are_in_the_datas_own_kind_and_channels_last():
    arrays = WIDE.arrays(WIDE.to_file(torch.ones(2, *WIDE.item_shape)))
    assert arrays["images"].dtype == np.uint16 and arrays["images"].shape == (2, 5, 7, 3)
    assert (arrays["images"] == 65535).all()


def test_a_classifier_sees_squares_that_can_be_turned():
    for shape in ((2, 5, 7), (2, 100, 30)):
        medium = Arrays(shape, "float32", ((0.0, 1.0),))
        x = medium.to_classifier(medium.to_file(torch.zeros(3, *shape)))
        assert x.shape[-1] == x.shape[-2] == min(64, max(shape[1:])) and x.abs().max() < 1e-6
