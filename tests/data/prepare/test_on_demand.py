"""Sets of which nothing is prepared: the batches of a prepared one, whatever the files lie in."""

import io
import json
import os
import resource

import numpy as np
import pytest
import torch
from archive_files import write
from PIL import Image

from ddpm_cli.data.image_folder import image_folder, paired_images
from ddpm_cli.data.loading.batches import Batches
from ddpm_cli.data.parquet import parquet
from ddpm_cli.errors import UserError, WorldError

YAML = {"cache": None, "channels": 3, "image_size": 8, "num_classes": None, "on_error": "stop"}
NAMES = [f"{name}/{k:02}.png" for name in ("cat", "dog") for k in range(10)]


def png(number, size=(9, 12)):
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(NAMES):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(png(number))
    return tmp_path / "photos"


def load(root, **changed):
    return image_folder(root=str(root), **{**YAML, "prepare": False, **changed})


def same_batches(one, other, flip=True):
    """Of three epochs, in parts, to the bit."""
    a, b = (Batches(store, 8, 5, flip, "cpu") for store in (one, other))
    for step in range(8):
        for start, stop in ((0, 3), (3, 8)):
            for x, y in zip(a.batch(step, start, stop), b.batch(step, start, stop), strict=True):
                assert x.equal(y)


def test_batches_are_those_of_a_prepared_set_and_nothing_is_written(folder):
    before = sorted(folder.rglob("*"))
    demanded = load(folder)
    items = demanded.items[:]
    assert sorted(folder.rglob("*")) == before
    prepared = load(folder, prepare=True)
    assert items.equal(prepared.items) and demanded.labels.equal(prepared.labels)
    assert demanded.class_names == prepared.class_names and demanded.name == prepared.name
    same_batches(prepared, demanded)
    for split in ("train", "test"):
        assert load(folder, split=split).items[:].equal(load(folder, split=split, prepare=True).items)


def test_rows_are_asked_for_as_of_a_tensor(folder):
    demanded, tensor = load(folder).items, load(folder, prepare=True).items
    assert demanded.shape == tensor.shape and demanded.dtype == tensor.dtype and len(demanded) == len(tensor)
    for rows in (3, slice(2, 7), slice(-3, None), slice(4, 4), [5, 1, 1], torch.tensor([[0, 19], [7, 7]])):
        assert demanded[rows].equal(tensor[rows]), rows


def test_sixteen_bits_and_pairs(folder, tmp_path):
    (tmp_path / "scans").mkdir()
    for k in range(6):
        Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000 + k).save(tmp_path / f"scans/{k}.png")
    deep = [
        load(tmp_path / "scans", channels=1, dtype="uint16", prepare=prepare, num_classes=0)
        for prepare in (False, True)
    ]
    assert deep[0].items[:].equal(deep[1].items) and deep[0].items.dtype == torch.int16
    node = {"_target_": "ddpm_cli.data.image_folder.image_folder", "root": str(folder), **YAML}
    pairs = [paired_images({**node, "prepare": p}, str(folder), None, 1, 20) for p in (False, True)]
    assert pairs[0].items[:].equal(pairs[1].items)


@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_archives_are_read_where_they_lie(tmp_path, folder, ending):
    archive = write(tmp_path / f"a{ending}", {name: png(number) for number, name in enumerate(NAMES)})
    demanded = load(archive)
    same_batches(load(folder, prepare=True), demanded)
    assert demanded.fingerprint == load(folder).fingerprint
    assert not (tmp_path / ".prepared").exists()


@pytest.mark.parametrize("ending", [".tar.gz", ".tar.xz"])
def test_a_compressed_tar_is_refused(tmp_path, ending):
    archive = write(tmp_path / f"a{ending}", {name: png(0) for name in NAMES})
    with pytest.raises(UserError, match=r"^dataset\.prepare=false: .*a\.tar\..z can only be read from front to back"):
        load(archive)


def test_more_shards_than_files_may_be_open(tmp_path):
    for shard in range(60):
        write(tmp_path / f"{shard:02}.tar", {"0.png": png(shard), "0.cls": str(shard % 2).encode()})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, hard))
    try:
        assert len(load(tmp_path).items[:]) == len(load(tmp_path, prepare=True).items) == 60
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_arrow_rows_are_had_one_by_one_and_parquet_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason='needs pip install "ddpm_cli[parquet]"')
    from pyarrow.parquet import write_table

    labels = {"label": [k % 3 for k in range(20)], "turned": [2 - k % 3 for k in range(20)]}
    table = pyarrow.table({"image": [png(k) for k in range(20)], **labels})
    for part in range(2):
        path = str(tmp_path / f"data-{part}.arrow")
        with pyarrow.OSFile(path, "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table.slice(10 * part, 10), max_chunksize=4)
    more = {"files": None, "image_column": None, "label_column": None, "dtype": "uint8", "max_skipped": 0.01}
    for split in ("all", "train", "test"):
        known = {**YAML, **more, "root": str(tmp_path), "split": split}
        demanded, prepared = parquet(**known, prepare=False), parquet(**known)
        assert demanded.labels.equal(prepared.labels) and demanded.class_names == prepared.class_names
        assert demanded.items[:].equal(prepared.items)
    other = parquet(**{**known, "label_column": "turned"}, prepare=False)
    assert other.class_names == demanded.class_names and other.fingerprint != demanded.fingerprint
    write_table(table, tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"rows of .*b\.parquet cannot be had one by one"):
        parquet(**{**known, "root": str(tmp_path / "b.parquet")}, prepare=False)


def test_what_cannot_be_read_ends_the_run_when_it_is_asked_for(folder):
    (folder / "cat/04.png").write_bytes(b"no image")
    items = load(folder).items
    assert len(items[[3, 5]]) == 2
    for _ in range(2):  # also when it is asked for again
        with pytest.raises(WorldError, match=r"cat/04\.png: not an image\nrepair or remove"):
            items[[4]]


def test_the_next_of_its_class_stands_in_the_place_of_one_that_is_skipped(folder, caplog):
    for name in ("cat/04.png", "cat/09.png"):
        (folder / name).write_bytes(b"no image")
    items = load(folder, on_error="skip", max_skipped=0.1).items
    for _ in range(2):
        assert items[[4, 9, 10]].equal(items[[5, 0, 10]])
    assert caplog.text.count("cat/04.png") == 1  # told once
    (folder / "dog/03.png").write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(WorldError, match=r"3 cannot be read"):
            items[[13]]


def test_a_class_without_one_good_image_ends(folder):
    for k in range(10):
        (folder / f"cat/{k:02}.png").write_bytes(b"no image")
    with pytest.raises(WorldError, match="of a class none can be read"):
        load(folder, on_error="skip", max_skipped=0.9).items[[4]]


def test_sets_are_told_from_one_another_by_files_and_shape_on_every_machine(folder):
    known = load(folder).fingerprint
    os.utime(folder / NAMES[3], (1, 1))
    assert load(folder).fingerprint == known != load(folder, prepare=True).fingerprint
    assert len({known, load(folder, image_size=4).fingerprint, load(folder, num_classes=0).fingerprint}) == 3
    (folder / NAMES[3]).write_bytes(png(99, size=(40, 40)))
    assert load(folder).fingerprint != known


def test_a_missing_file_is_named(folder):
    items = load(folder).items
    (folder / NAMES[2]).unlink()
    with pytest.raises(WorldError, match=r"cat/02\.png"):
        items[[2]]


def test_json_beside_images(tmp_path):
    contents = {f"{k}.png": png(k) for k in range(4)}
    contents |= {f"{k}.json": json.dumps({"label": k % 2}).encode() for k in range(4)}
    store = load(write(tmp_path / "a.tar", contents))
    assert store.labels.tolist() == [0, 0, 1, 1]
    same_batches(load(tmp_path / "a.tar", prepare=True), store, flip=False)
