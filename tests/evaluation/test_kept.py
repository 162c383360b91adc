"""features/: what is known of which image, whatever batches it came in."""

import numpy as np
import pytest

from ddpm_cli.evaluation.kept import Kept


def rows(indices):
    return np.array([[k, 2 * k] for k in indices], dtype=np.float32)


def pixels(indices):
    return np.stack([np.full((1, 2, 2), k, dtype=np.uint8) for k in indices])


@pytest.fixture
def kept(tmp_path):
    return Kept(tmp_path, pixels_below=6)


def add(kept, *indices):
    kept.add(indices, {"images": pixels(indices), "features": rows(indices)})


def test_batches_lie_at_multiples_of_their_size_whatever_is_there(kept):
    assert kept.missing(10, 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    add(kept, 4, 5, 6, 7)
    assert kept.missing(10, 4) == [[0, 1, 2, 3], [8, 9]]
    assert kept.missing(10, 3) == [[0, 1, 2], [3], [8], [9]]


def test_rows_come_back_in_the_order_of_their_numbers_and_no_further_than_asked(kept):
    for batch in ((8, 9), (0, 1, 2, 3), (4, 5, 6, 7)):
        add(kept, *batch)
    arrays = kept.read(9)
    assert np.array_equal(arrays["features"], rows(range(9)))
    assert np.array_equal(arrays["images"], pixels(range(6)))  # the others' pixels were not wanted


def test_a_damaged_file_and_one_without_wanted_pixels_are_made_again(kept, tmp_path):
    add(kept, 0, 1, 2, 3)
    add(kept, 4, 5, 6, 7)
    (tmp_path / "00000000.npz").write_bytes((tmp_path / "00000000.npz").read_bytes()[:100])
    assert kept.missing(8, 4) == [[0, 1, 2, 3]]
    assert Kept(tmp_path, pixels_below=8).missing(8, 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
