"""Images in arrays: shapes, ranges, labels, and what is refused."""

import numpy as np
import pytest
import torch

from ddpm_cli.data.arrays import arrays, found
from ddpm_cli.errors import UserError

YAML = {"cache": None, "images": None, "labels": None, "layout": None, "split": "all"}
OPEN = {"channels": None, "image_size": None, "dtype": None, "range": None, "num_classes": None}


def load(path, **typed):
    """As a run has it: what is open is found, and the set is made of that."""
    node = {**YAML, **OPEN, **typed, "root": str(path)}
    known = found(node)
    return arrays(
        **{key: known[key] if value in (None, "each") and key in known else value for key, value in node.items()}
    )


def saved(path, array, **others):
    np.save(path, array) if path.suffix == ".npy" else np.savez(path, images=array, **others)
    return path


RANDOM = np.random.default_rng(0)
WHOLE = RANDOM.integers(0, 256, (14, 6, 9, 3)).astype(np.uint8)


@pytest.mark.parametrize("ending", [".npy", ".npz"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_eight_bits_are_kept_as_they_are_in_either_layout(tmp_path, ending, layout):
    array = WHOLE if layout == "NHWC" else np.moveaxis(WHOLE, -1, 1)
    store = load(saved(tmp_path / f"a{ending}", array))
    assert store.items.dtype == torch.uint8 and store.medium.suffix == ".png"
    assert np.array_equal(store.items.numpy(), np.moveaxis(WHOLE, -1, 1))
    assert store.labels is None and store.name == "a"


def test_sixteen_bits_are_kept_as_they_are(tmp_path):
    array = RANDOM.integers(0, 65536, (5, 4, 6)).astype(np.uint16)
    store = load(saved(tmp_path / "a.npy", array))
    assert store.item_shape == (1, 4, 6) and np.array_equal(store.to_file(store.items).numpy()[:, 0], array)
    big = load(saved(tmp_path / "b.npy", array.astype(">u2")))
    assert big.items.equal(store.items) and big.fingerprint == store.fingerprint


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16, np.int32, bool])
def test_other_numbers_are_floats_between_their_extremes(tmp_path, dtype):
    array = (RANDOM.normal(size=(30, 5, 4, 2)) * 50).round().clip(0 if dtype is bool else -99, 99).astype(dtype)
    store = load(saved(tmp_path / "a.npy", array))
    assert store.items.dtype == torch.float32
    assert (store.items.min(), store.items.max()) == (-1, 1)
    assert np.allclose(store.to_file(store.items).numpy(), np.moveaxis(array, -1, 1).astype(float), atol=1e-3)


def test_each_channel_may_have_its_own_range_and_a_range_may_be_typed(tmp_path, caplog):
    array = RANDOM.normal(size=(30, 5, 4, 2)) * [1, 40] + [0, 300]
    path = saved(tmp_path / "a.npy", array)
    one, each = load(path), load(path, range="each")
    assert (one.items[:, 0].max() - one.items[:, 0].min()) < 0.1
    assert each.items.amin((0, 2, 3)).tolist() == [-1, -1] and each.items.amax((0, 2, 3)).tolist() == [1, 1]
    typed = load(path, range=[[-10, 10], [250, 350]])
    assert typed.medium.range == ((-10, 10), (250, 350)) and "% lie outside of dataset.range" in caplog.text
    assert len({one.fingerprint, each.fingerprint, typed.fingerprint}) == 3
    for wrong in ([[0, 1]] * 3, [1, 1], [2, 1]):
        with pytest.raises(UserError, match=r"dataset\.range"):
            load(path, range=wrong)


def test_labels_are_numbers_or_names_in_the_file_or_beside_it(tmp_path):
    store = load(saved(tmp_path / "a.npz", WHOLE, labels=np.arange(14) % 3))
    assert store.class_names == ("0", "1", "2") and store.labels.tolist() == [k % 3 for k in range(14)]
    named = load(saved(tmp_path / "b.npz", WHOLE, y=np.array(["dog", "cat"] * 7)))
    assert named.class_names == ("cat", "dog") and named.labels.tolist() == [1, 0] * 7
    np.save(tmp_path / "l.npy", np.arange(14) % 2)
    beside = load(saved(tmp_path / "c.npy", WHOLE), labels=str(tmp_path / "l.npy"))
    assert beside.num_classes == 2 and load(tmp_path / "a.npz", num_classes=0).labels is None
    for wrong in (np.arange(13), np.ones((14, 2), int), np.ones(14), -np.arange(14)):
        with pytest.raises(UserError, match=r"dataset"):
            load(saved(tmp_path / "d.npz", WHOLE, labels=wrong))


def test_every_sixth_image_can_be_held_out(tmp_path):
    path = saved(tmp_path / "a.npz", WHOLE, labels=np.arange(14))
    train, test = load(path, split="train"), load(path, split="test")
    assert test.labels.tolist() == [5, 11] and 5 not in train.labels and len(train) == 12
    assert np.array_equal(test.items.numpy(), np.moveaxis(WHOLE, -1, 1)[[5, 11]])


def test_a_file_in_many_blocks_is_the_file_in_one(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.npz", RANDOM.normal(size=(50, 5, 4, 2)), labels=np.arange(50) % 3)
    whole = load(path, split="train", cache=str(tmp_path / "one"))
    monkeypatch.setattr("ddpm_cli.data.prepare.npy._NUMBERS", 7 * 40)
    parts = load(path, split="train", cache=str(tmp_path / "many"))
    assert parts.items.equal(whole.items) and parts.labels.equal(whole.labels) and len(parts) == 42


def test_other_sizes_are_scaled_and_cropped(tmp_path):
    path = saved(tmp_path / "a.npy", np.tile(np.linspace(0, 1, 20, dtype=np.float32), (3, 10, 1)))
    store = load(path, image_size=[5, 10])
    assert store.item_shape == (1, 5, 10) and (store.items.diff(dim=-1) > 0).all()
    middle = load(path, image_size=10)
    assert torch.allclose(middle.items[0, 0, 0], torch.linspace(-1, 1, 20)[5:15], atol=1e-6)
    assert load(saved(tmp_path / "b.npy", WHOLE), image_size=4).items.dtype == torch.uint8


REFUSED = {
    "numbers that are not finite": (
        np.where(np.arange(96).reshape(4, 4, 6) == 50, np.nan, 1.0),
        {},
        r"image 2 .*finite",
    ),
    "one number alone": (np.ones((4, 4, 6)), {}, r"nothing but 1; say \[low, high\]"),
    "two dimensions": (np.ones((4, 4)), {}, r"\(N, H, W\)"),
    "objects": (np.array([[[None]]]), {}, "must hold images as numbers"),
    "complex numbers": (np.ones((4, 4, 6), complex), {}, "must hold images as numbers"),
    "two ways to read it": (np.ones((4, 4, 6, 4), np.uint8), {}, "say whether that is NHWC or NCHW"),
    "another number of channels": (WHOLE, {"channels": 1}, r"dataset\.channels=1: .* has 3"),
    "another kind of number": (WHOLE, {"dtype": "uint16"}, r"dataset\.dtype=uint16: .* holds uint8"),
    "a layout of other dimensions": (WHOLE, {"layout": "NHW"}, r"dataset\.layout=NHW: .* has 4 dimensions"),
    "the order of Fortran": (np.asfortranarray(WHOLE), {}, "ascontiguousarray"),
    "a name that is not there": (WHOLE, {"images": "x"}, r"dataset\.images=x"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_told_is_refused_in_a_line(tmp_path, case):
    array, typed, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        load(saved(tmp_path / "a.npy", array), **typed)
    assert len(str(caught.value).splitlines()) == 1
    assert not [p for p in tmp_path.glob(".prepared/*") if not p.name.endswith(".lock")]


@pytest.mark.parametrize("kind", ["absent", "text", "cut.npy", "cut.npz", "several"])
def test_what_is_no_array_is_refused(tmp_path, kind):
    path = tmp_path / ("a.npz" if kind in ("several", "cut.npz") else "a.npy")
    if kind == "text":
        path.write_text("no array")
    elif kind == "several":
        np.savez(path, one=WHOLE, two=WHOLE)
    elif kind != "absent":
        saved(path, WHOLE)
        path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match=r"^dataset\.(root|images): .*a\.np"):
        load(path)


def test_arrays_in_an_archive_are_chosen_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", one=WHOLE, two=WHOLE[:3])
    assert len(load(tmp_path / "a.npz", images="two")) == 3
    with pytest.raises(UserError, match=r"dataset.labels=y.npz: name one of one, two in .*a.npz, or an .npy file"):
        load(tmp_path / "a.npz", images="one", labels="y.npz")
    with pytest.raises(UserError, match="dataset.labels=y.npz: name an .npy file of whole"):
        load(saved(tmp_path / "c.npy", WHOLE), labels="y.npz")
    np.savez_compressed(tmp_path / "b.npz", arr=WHOLE, count=np.array(3))
    assert len(load(tmp_path / "b.npz")) == 14
