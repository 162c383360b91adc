"""Folders of the user's own images."""

import multiprocessing
import os
import re
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_cli.data import image_folder as module
from ddpm_cli.data.image_folder import image_folder
from ddpm_cli.errors import UserError, WorldError

YAML = {"cache": None, "channels": 3, "image_size": 8, "num_classes": None, "on_error": "stop"}


def draw(root, *paths, first=0):
    """Images of one grey value each: the value is `first` plus the place among the arguments."""
    for value, path in enumerate(paths, first):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 12), (value, value, value)).save(root / path)


def load(root, **changed):
    return image_folder(root=str(root), **{**YAML, **changed})


def test_images_and_labels_match(tmp_path):
    draw(tmp_path, *(f"{'ab'[number % 2]}/{number:03}.png" for number in range(100)))
    store = load(tmp_path)
    assert store.class_names == ("a", "b") and store.item_shape == (3, 8, 8)
    values = store.items[:, 0, 0, 0].tolist()
    assert values == [*range(0, 100, 2), *range(1, 100, 2)]
    assert store.labels.tolist() == [value % 2 for value in values]
    assert store.name == tmp_path.name


def test_a_folder_of_tables_names_their_kind(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="no image files in .*; is dataset=parquet meant"):
        load(tmp_path)


def test_a_flat_folder_has_no_labels(tmp_path):
    draw(tmp_path, "x.png", "y.png")
    store = load(tmp_path)
    assert store.labels is None and store.num_classes == 0 and len(store) == 2


def test_labels_can_be_left_out(tmp_path):
    draw(tmp_path, "a/x.png", "b/y.png")
    assert load(tmp_path, num_classes=0).labels is None
    assert load(tmp_path, num_classes=2).num_classes == 2
    with pytest.raises(UserError, match=r"^dataset\.num_classes must be 2"):
        load(tmp_path, num_classes=3)


def test_the_cache_lies_in_the_folder_and_is_no_class(tmp_path):
    draw(tmp_path, "a/x.png")
    assert load(tmp_path).fingerprint == load(tmp_path).fingerprint
    assert (tmp_path / ".prepared").is_dir()
    load(tmp_path, cache=str(tmp_path / "cache"))
    assert load(tmp_path, cache=str(tmp_path / "cache")).class_names == ("a",)


def test_the_second_time_nothing_is_decoded(tmp_path, monkeypatch):
    draw(tmp_path, "a/x.png")
    load(tmp_path)
    monkeypatch.setattr("ddpm_cli.data.image_folder.decode", lambda *_: pytest.fail("decoded again"))
    load(tmp_path)


@pytest.mark.parametrize("change", ["content", "new", "removed", "renamed"])
def test_a_changed_folder_is_prepared_again(tmp_path, change):
    draw(tmp_path, "a/x.png", "a/y.png")
    before = load(tmp_path)
    if change == "content":
        draw(tmp_path, "a/y.png", first=200)
        assert load(tmp_path).items[1, 0, 0, 0] == 200
    elif change == "new":
        draw(tmp_path, "a/z.png")
    elif change == "removed":
        (tmp_path / "a/x.png").unlink()
    else:
        (tmp_path / "a/x.png").rename(tmp_path / "a/z.png")
    assert load(tmp_path).fingerprint != before.fingerprint


def test_settings_are_part_of_the_fingerprint(tmp_path):
    draw(tmp_path, "a/x.png")
    changes = [{}, {"channels": 1}, {"image_size": 4}, {"num_classes": 0}]
    assert len({load(tmp_path, **change).fingerprint for change in changes}) == 4


def spoil(path, kind):
    if kind == "text":
        path.write_text("no image")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif kind == "dangling":
        path.unlink()
        os.symlink(path.parent / "gone", path)
    elif kind == "unreadable":
        path.chmod(0)


@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "dangling", "unreadable"])
def test_a_bad_file_is_named(tmp_path, kind):
    if kind == "unreadable" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    draw(tmp_path, *(f"a/{number}.png" for number in range(40)))
    spoil(tmp_path / "a/27.png", kind)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "a/27.png"))) as caught:
        load(tmp_path)
    assert len(str(caught.value).splitlines()) <= 3
    assert [path for path in (tmp_path / ".prepared").iterdir() if not path.name.endswith(".lock")] == []


def test_bad_files_are_skipped_on_demand_and_counted(tmp_path, caplog):
    draw(tmp_path, *(f"{'ab'[number % 2]}/{number:03}.png" for number in range(200)))
    spoil(tmp_path / "a/000.png", "text")
    spoil(tmp_path / "b/101.png", "empty")
    store = load(tmp_path, on_error="skip")
    assert len(store) == 198 and store.labels.bincount().tolist() == [99, 99]
    assert store.items[0, 0, 0, 0] == 2
    assert "skipped 2 of 200" in caplog.text and str(tmp_path / "b/101.png") in caplog.text
    with pytest.raises(UserError):  # what skipping has prepared does not hide the files
        load(tmp_path)


def test_more_than_one_percent_skipped_is_an_error(tmp_path):
    draw(tmp_path, *(f"a/{number}.png" for number in range(100)))
    spoil(tmp_path / "a/7.png", "text")
    assert len(load(tmp_path, on_error="skip")) == 99
    spoil(tmp_path / "a/8.png", "text")
    with pytest.raises(
        UserError, match=r"at most 1% of the images, 1 of these 100, and 2 .*remove such files:\n.*a/8\.png"
    ):
        load(tmp_path, on_error="skip")


def test_skipping_is_offered_only_where_it_would_do(tmp_path):
    draw(tmp_path, *(f"a/{number:03}.png" for number in range(100)))
    spoil(tmp_path / "a/007.png", "text")
    with pytest.raises(UserError, match=r"repair or remove.*, or leave out.*at most 1% .*on_error=skip$"):
        load(tmp_path)
    for number in (8, 9, 10):
        spoil(tmp_path / f"a/{number:03}.png", "text")
    with pytest.raises(UserError, match=r"007.*008.*009.png[^;]*\nrepair or remove.*skip leaves out at most 1%"):
        load(tmp_path)


def test_a_worker_that_raises_ends_the_preparation_within_seconds(tmp_path, monkeypatch):
    draw(tmp_path, *(f"{number}.png" for number in range(200)))

    def decode(path, *_):
        time.sleep(0.001)
        if path.name == "90.png":
            raise MemoryError
        return np.zeros((3, 8, 8), np.uint8)

    monkeypatch.setattr("ddpm_cli.data.image_folder.decode", decode)
    started = time.monotonic()
    with pytest.raises(MemoryError):
        load(tmp_path)
    assert time.monotonic() < started + 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_while_it_decodes_leaves_no_set(tmp_path, monkeypatch, number):
    draw(tmp_path, *(f"{number:03}.png" for number in range(250)))
    decode = module.decode
    monkeypatch.setattr(module, "decode", lambda *arguments: (time.sleep(0.04), decode(*arguments))[1])
    run = multiprocessing.get_context("fork").Process(target=load, args=(tmp_path,), daemon=True)
    run.start()
    until = time.monotonic() + 10
    while not list(tmp_path.glob(".prepared/.*.tmp-*/items.npy")) and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.7)  # among the threads by now
    os.kill(run.pid, number)
    run.join(5)
    assert run.exitcode not in (0, None)
    names = [path.name for path in (tmp_path / ".prepared").iterdir() if not path.name.endswith(".lock")]
    assert all(".tmp-" in name for name in names) and (number != signal.SIGINT or not names)
    monkeypatch.undo()
    assert load(tmp_path).items[:, 0, 0, 0].tolist() == list(range(250))


def test_an_unwritable_cache_names_the_remedy(tmp_path):
    draw(tmp_path, "root/a/x.png")
    (tmp_path / "root/.prepared").write_text("in the way")
    with pytest.raises(UserError, match=r"dataset\.cache=PATH"):
        load(tmp_path / "root")


def test_other_channels_than_those_of_images_are_refused(tmp_path):
    draw(tmp_path, "a/x.png")
    with pytest.raises(UserError, match=r"^dataset\.channels .*got 2"):
        load(tmp_path, channels=2)


def test_images_larger_than_the_disk_are_refused_before_any_is_decoded(tmp_path, monkeypatch):
    draw(tmp_path, "a/x.png")
    monkeypatch.setattr(module, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(WorldError, match=r"free are \d+ MiB"):
        load(tmp_path, image_size=10**10)


def test_every_sixth_image_can_be_held_out_and_the_whole_folder_keeps_its_fingerprint(tmp_path):
    draw(tmp_path, *(f"{'ab'[number // 6]}/{number:02}.png" for number in range(12)))
    whole, train, test = load(tmp_path), load(tmp_path, split="train"), load(tmp_path, split="test")
    assert whole.fingerprint == load(tmp_path, split="all").fingerprint
    assert len({whole.fingerprint, train.fingerprint, test.fingerprint}) == 3
    assert test.items[:, 0, 0, 0].tolist() == [5, 11] and test.labels.tolist() == [0, 1]
    assert sorted([*train.items[:, 0, 0, 0].tolist(), 5, 11]) == whole.items[:, 0, 0, 0].tolist()


def test_the_share_that_may_be_skipped_can_be_set(tmp_path):
    draw(tmp_path, *(f"a/{number}.png" for number in range(10)))
    for number in (1, 2):
        spoil(tmp_path / f"a/{number}.png", "text")
    with pytest.raises(UserError, match=r"at most 10% of the images, 1 of these 10, and 2 .*dataset\.max_skipped"):
        load(tmp_path, on_error="skip", max_skipped=0.1)
    assert len(load(tmp_path, on_error="skip", max_skipped=0.2)) == 8


def test_a_height_and_a_width_keep_the_middle_of_that_aspect(tmp_path):
    draw(tmp_path, "a/x.png", first=7)
    store = load(tmp_path, image_size=[6, 10])
    assert store.item_shape == (3, 6, 10) and (store.items == 7).all()


def test_sixteen_bits_reach_the_model_and_the_copy_of_eight_is_another(tmp_path):
    (tmp_path / "a").mkdir()
    wide = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    Image.fromarray(wide).save(tmp_path / "a/x.png")
    deep, flat = (load(tmp_path, channels=1, dtype=dtype) for dtype in ("uint16", "uint8"))
    assert torch.equal(deep.to_file(deep.items)[0, 0], torch.from_numpy(wide.astype(np.int32)))
    model = deep.to_model(deep.items)
    assert torch.allclose(model[0, 0], torch.from_numpy(wide / 32767.5 - 1).float(), atol=1e-7)
    assert len(model.unique()) == 64 and deep.fingerprint != flat.fingerprint
