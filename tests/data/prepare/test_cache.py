"""The cache of prepared sets: whole or absent, whatever happens to the run that prepares it."""

import errno
import io
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_cli.data.prepare import cache as module
from ddpm_cli.data.prepare.cache import CacheError, load_prepared, prepare
from ddpm_cli.errors import UserError, WorldError


def blocks(count=10, calls=None, seconds=0.0):
    if calls is not None:
        calls.append(1)
    for start in range(0, count, 4):
        index = np.arange(start, min(start + 4, count))
        time.sleep(seconds)
        yield np.broadcast_to(index[:, None, None, None], (len(index), 1, 2, 2)).astype(np.uint8), index % 2


def toy(cache: Path, fill=blocks, **key):
    arguments = {"name": "toy", "num_items": 10, "item_shape": (1, 2, 2), "class_names": ("even", "odd")}
    return prepare(cache, {"kind": "toy", **key}, **arguments, fill=fill)


def leftovers(cache: Path):
    return [path.name for path in cache.iterdir() if ".tmp-" in path.name]


def only_set(cache: Path) -> Path:
    (found,) = (path for path in cache.iterdir() if not path.name.startswith("."))
    return found


def check(store):
    assert store.items[:, 0, 0, 0].tolist() == list(range(10))
    assert store.labels.tolist() == [0, 1] * 5
    assert store.labels.dtype == torch.int64 and store.items.dtype == torch.uint8


def test_a_set_is_prepared_once(tmp_path):
    calls = []
    for _ in range(2):
        check(toy(tmp_path, lambda: blocks(calls=calls)))
    assert len(calls) == 1
    assert only_set(tmp_path).name.startswith("toy-")


def test_another_key_is_another_set_and_the_same_content_has_the_same_fingerprint(tmp_path):
    first, second = toy(tmp_path, size=1), toy(tmp_path, size=2)
    assert len(list(tmp_path.glob("toy-*"))) == 2 and first.fingerprint == second.fingerprint
    fewer = toy(tmp_path, lambda: blocks(5), size=3)
    assert fewer.fingerprint != first.fingerprint


def test_fewer_items_than_promised_are_kept_and_no_more(tmp_path):
    store = toy(tmp_path, lambda: blocks(5))
    assert len(store) == 5 and len(store.labels) == 5
    assert len(np.load(only_set(tmp_path) / "items.npy")) == 5


def test_the_items_are_mapped_read_only(tmp_path):
    store = toy(tmp_path)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc on this system")
    (line,) = (line for line in maps.read_text().splitlines() if str(tmp_path) in line)
    assert line.split()[1].startswith("r--")
    assert len(store) == 10


@pytest.mark.parametrize("file", ["items.npy", "labels.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "empty"])
def test_a_damaged_set_is_prepared_again(tmp_path, file, damage):
    toy(tmp_path)
    path = only_set(tmp_path) / file
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[:-3] if damage == "truncated" else b"")
    assert load_prepared(path.parent) is None
    check(toy(tmp_path))
    assert leftovers(tmp_path) == []


def test_a_set_of_an_older_format_is_prepared_again(tmp_path):
    toy(tmp_path)
    path = only_set(tmp_path) / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 0}))
    assert load_prepared(path.parent) is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("bad file"), SystemExit(143)])
def test_an_interrupted_preparation_leaves_nothing(tmp_path, error):
    closed = []

    def fill():
        try:
            yield from blocks(4)
            raise error
        finally:
            closed.append(1)

    with pytest.raises(type(error)):
        toy(tmp_path, fill)
    assert closed and [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []
    check(toy(tmp_path))


class FullDisk(io.FileIO):
    """A file on a disk that has room for so many bytes."""

    room = 0

    def write(self, block):
        FullDisk.room -= memoryview(block).nbytes
        if FullDisk.room < 0:
            super().write(bytes(1))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(block)


@pytest.mark.parametrize("room", [0, 128, 160, 200])  # the header takes 128, each block 16, the header again 128
def test_a_full_disk_names_the_path_and_the_space(tmp_path, monkeypatch, room):
    monkeypatch.setattr(FullDisk, "room", room)
    monkeypatch.setattr(module, "open", FullDisk, raising=False)
    with pytest.raises(WorldError, match=r"toy-\w+ \(No space left on device\): it needs 0 MiB, free are \d+ MiB"):
        toy(tmp_path)
    assert leftovers(tmp_path) == []
    monkeypatch.undo()
    check(toy(tmp_path))


def test_all_of_a_set_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(
        module, "sync", lambda path: synced.append((path.name, path.is_file(), len(leftovers(tmp_path))))
    )
    toy(tmp_path)
    *files, folder, parent = synced
    assert {name for name, *_ in files} == {"items.npy", "labels.npy", "meta.json"}
    assert ".tmp-" in folder[0] and all(unnamed == 1 for *_, unnamed in (*files, folder))
    assert parent == (tmp_path.name, False, 0)


def test_too_little_space_is_told_before_the_work(tmp_path):
    with pytest.raises(WorldError, match=r"free are \d+ MiB"):
        prepare(
            tmp_path, {}, name="big", num_items=10**9, item_shape=(3, 999, 999), fill=lambda: pytest.fail("decoded")
        )


def test_an_unwritable_cache_names_the_remedy(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match=r"dataset\.cache: cannot write to .*dataset\.cache=PATH"):
        toy(tmp_path / "file" / "cache")


def test_a_read_only_cache_with_the_set_in_it_is_enough(tmp_path, monkeypatch):
    toy(tmp_path)
    monkeypatch.setattr(module, "lock", lambda *_: pytest.fail("wanted to write"))
    check(toy(tmp_path))


def prepare_slowly(cache, calls, seconds):
    def fill():
        with calls.get_lock():
            calls.value += 1
        yield from blocks(seconds=seconds)

    check(toy(cache, fill))


def test_two_runs_prepare_one_set_once(tmp_path):
    fork = multiprocessing.get_context("fork")
    calls = fork.Value("i", 0)
    runs = [fork.Process(target=prepare_slowly, args=(tmp_path, calls, 0.1), daemon=True) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(20)
    assert [run.exitcode for run in runs] == [0, 0, 0] and calls.value == 1
    check(toy(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_hands_the_lock_on_and_its_remains_are_removed(tmp_path, number):
    fork = multiprocessing.get_context("fork")
    run = fork.Process(target=prepare_slowly, args=(tmp_path, fork.Value("i", 0), 30))
    run.start()
    started = time.monotonic()
    while not (tmp_path.exists() and leftovers(tmp_path)) and time.monotonic() < started + 10:
        time.sleep(0.01)
    os.kill(run.pid, number)
    run.join(10)
    assert leftovers(tmp_path)
    check(toy(tmp_path))
    assert leftovers(tmp_path) == [] and time.monotonic() < started + 10


def test_without_file_locks_the_work_goes_on_with_a_warning(tmp_path, monkeypatch, caplog):
    import fcntl

    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    check(toy(tmp_path))
    assert "cannot be locked" in caplog.text
