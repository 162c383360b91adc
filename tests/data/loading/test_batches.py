"""Batches: a pure function of (seed, step), whatever is asked for in between."""

import mmap
import sys

import numpy as np
import pytest
import torch

from ddpm_cli.data.loading import paging
from ddpm_cli.data.loading.batches import Batches
from ddpm_cli.data.store import Store
from ddpm_cli.errors import UserError


def numbered(count=10, shape=(1, 2, 2), labelled=True):
    """Item i is filled with i, its left half with i + 100; its label is i."""
    items = torch.arange(count, dtype=torch.uint8).view(-1, *[1] * len(shape)).repeat(1, *shape)
    items[..., : shape[-1] // 2] += 100
    labels, names = (torch.arange(count), tuple(map(str, range(count)))) if labelled else (None, ())
    return Store(items, labels, names, "numbered", "0")


def batches(batch_size, *, count=10, seed=0, flip=False, labelled=True):
    return Batches(numbered(count, labelled=labelled), batch_size, seed, flip, "cpu")


def order(source, steps):
    return [label for step in range(steps) for label in source.batch(step)[1].tolist()]


def same(one, other):
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_images_are_float_in_the_models_range_and_match_their_labels():
    x_0, labels = batches(10).batch(0)
    assert x_0.dtype == torch.float32 and x_0.shape == (10, 1, 2, 2) and labels.dtype == torch.int64
    torch.testing.assert_close(x_0[:, 0, 0, 1], labels / 127.5 - 1)


def test_without_labels_there_are_none():
    assert batches(4, labelled=False).batch(0)[1] is None


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10, 25])
def test_every_epoch_is_a_new_permutation_and_batches_run_on_across_its_end(batch_size):
    stream = order(batches(batch_size), 200 // batch_size + 1)
    epochs = [tuple(stream[start : start + 10]) for start in range(0, 200, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) == 20


def test_the_order_does_not_depend_on_the_batch_size():
    assert order(batches(3), 20)[:50] == order(batches(25), 2)


def test_the_seed_decides():
    assert order(batches(10), 3) == order(batches(10), 3)
    assert order(batches(10), 3) != order(batches(10, seed=1), 3)


@pytest.mark.parametrize("batch_size", [4, 25])
def test_slices_are_the_rows_of_the_whole_batch(batch_size):
    source, fresh = batches(batch_size, flip=True), batches(batch_size, flip=True)
    for step in range(8):
        whole = source.batch(step)
        for start in range(batch_size):
            for stop in range(start + 1, batch_size + 1, 3):
                part = fresh.batch(step, start, stop)
                assert same(part, (whole[0][start:stop], whole[1][start:stop]))


def test_a_resumed_run_sees_what_the_uninterrupted_one_sees():
    uninterrupted = batches(7, flip=True)
    expected = [uninterrupted.batch(step) for step in range(12)]
    for first in (0, 1, 2, 3, 9):  # inside an epoch and across its end
        resumed = batches(7, flip=True)
        assert all(same(resumed.batch(step), expected[step]) for step in range(first, 12))


def test_going_back_gives_the_same_batch():
    source = batches(4, flip=True)
    first = source.batch(0)
    source.batch(1000)
    assert same(source.batch(0), first)


def test_about_half_of_the_images_are_mirrored_and_independently_of_the_order():
    plain, flipped = batches(1000, count=100), batches(1000, count=100, flip=True)
    (x, labels), (mirrored, mirrored_labels) = plain.batch(3), flipped.batch(3)
    assert torch.equal(labels, mirrored_labels)
    as_is = (x == mirrored).flatten(1).all(1)
    assert torch.equal(torch.where(as_is.view(-1, 1, 1, 1), x, x.flip(-1)), mirrored)
    assert 420 < as_is.sum() < 580
    # one image is mirrored in some epochs and not in others
    assert 0 < as_is[labels == 7].sum() < 10


def test_sound_comes_in_batches_but_is_not_mirrored():
    sound = Store(torch.rand(6, 1, 50) * 2 - 1, None, (), "sound", "0")
    assert Batches(sound, 4, 0, False, "cpu").batch(0)[0].shape == (4, 1, 50)
    with pytest.raises(UserError, match=r"^dataset\.flip"):
        Batches(sound, 4, 0, True, "cpu")


def test_the_items_stay_as_they_are():
    source = batches(10, flip=True)
    before = source.store.items.clone()
    for step in range(5):
        source.batch(step)[0].zero_()
    assert torch.equal(source.store.items, before)


def test_only_the_orders_in_use_are_kept():
    source = batches(4)
    for step in range(100):
        source.batch(step)
    assert len(source._orders) <= 3


def test_rows_gathered_ahead_are_the_same_whatever_is_asked():
    """Micro-batches, a step made again, one left out, a run that goes back, and another part of a batch."""
    now, ahead = batches(8, count=23, flip=True), batches(8, count=23, flip=True)
    ahead.gather_ahead()
    asked = [(step, start, start + 4) for step in range(6) for start in (0, 4)]
    asked += [
        (6, 0, 4),
        (6, 0, 4),
        (6, 4, 8),
        (8, 0, 4),
        (8, 4, 8),
        (2, 0, 4),
        (2, 4, 8),
        (3, 0, 8),
        (3, 2, 5),
        (0, 0, 8),
    ]
    for step, start, stop in asked:
        assert same(ahead.batch(step, start, stop), now.batch(step, start, stop)), (step, start, stop)


@pytest.mark.skipif(sys.platform != "linux", reason="no such call elsewhere")
def test_the_system_is_told_which_pages_of_a_map_are_wanted(tmp_path, monkeypatch):
    content = np.random.default_rng(0).integers(0, 256, (50, 3, 60, 60), dtype=np.uint8)
    np.save(tmp_path / "items.npy", content)
    items = torch.from_numpy(np.load(tmp_path / "items.npy", mmap_mode="c"))
    plain = Batches(Store(torch.from_numpy(content), None, (), "mapped", "0" * 16), 7, 0, False, "cpu")
    expected = [plain.batch(step)[0] for step in range(3)]
    monkeypatch.setattr(paging, "_LARGE", 0)
    told, real = [], paging._madvise
    monkeypatch.setattr(paging, "_madvise", lambda *args: told.append((*args, real(*args))))
    source = Batches(Store(items, None, (), "mapped", "0" * 16), 7, 0, False, "cpu")
    assert all(torch.equal(source.batch(step)[0], items) for step, items in enumerate(expected))
    assert len(told) == 21
    base, row = items.data_ptr(), items[0].nbytes
    for (start, length, advice, answer), number in zip(told, source._index(0, 21).tolist(), strict=True):
        assert answer == 0 and advice == mmap.MADV_WILLNEED and start % mmap.PAGESIZE == 0
        first = base + number * row
        assert start <= first < start + mmap.PAGESIZE and start + length == first + row


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_gpu_sees_the_same_batches(monkeypatch, share):
    monkeypatch.setattr("ddpm_cli.data.loading.batches._DEVICE_SHARE", share)
    store = numbered(50, (3, 4, 4))
    cpu, gpu = Batches(store, 16, 5, True, "cpu"), Batches(store, 16, 5, True, "cuda")
    for step in range(20):
        x_0, labels = gpu.batch(step)
        assert x_0.is_cuda and labels.is_cuda
        assert same((x_0.cpu(), labels.cpu()), cpu.batch(step))
