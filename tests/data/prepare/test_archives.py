"""Archives are read as the folders that would be unpacked from them."""

import io
import json

import numpy as np
import pytest
from archive_files import write
from PIL import Image

from ddpm_cli.data.image_folder import found, image_folder
from ddpm_cli.data.prepare import archives
from ddpm_cli.errors import UserError

YAML = {"cache": None, "channels": 1, "image_size": 4, "num_classes": None, "on_error": "stop"}
FILES = {f"{name}/{k:02}.png": 10 * k + n for n, name in enumerate(("cat", "cat/b", "cat.d", "dog")) for k in range(6)}
ENDINGS = [".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"]


def png(value):
    content = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(content, "PNG")
    return content.getvalue()


def load(root, **changed):
    return image_folder(root=str(root), **{**YAML, **changed})


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("top", ["", "photos/", "./photos/"])
def test_an_archive_is_the_set_of_its_folder_whatever_its_order(tmp_path, ending, top):
    for name, value in FILES.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(png(value))
    contents = {f"{top}{name}": png(value) for name, value in reversed(FILES.items())}
    hidden = {f"{top}cat/.hidden.png": b"", f"__MACOSX/{top}cat/00.png": b"", f"{top}notes.txt": b"x"}
    archive = write(tmp_path / f"a{ending}", {**hidden, **contents})
    folder, packed = load(tmp_path / "folder"), load(archive)
    assert packed.class_names == folder.class_names == ("cat", "cat.d", "dog")
    assert packed.fingerprint == folder.fingerprint and packed.items.equal(folder.items)
    assert found({"root": str(archive)}) == {"num_classes": 3}
    assert [p.name for p in (tmp_path / ".prepared").iterdir() if ".tmp" in p.name] == []


def test_images_without_folders_have_no_classes_and_mixed_ones_are_refused(tmp_path):
    flat = load(write(tmp_path / "a.zip", {"top/b.png": png(2), "top/a.png": png(1)}))
    assert flat.labels is None and flat.items[:, 0, 0, 0].tolist() == [1, 2]
    with pytest.raises(UserError, match=r"loose images \(x\.png\) and class sub-folders \(cat\)"):
        load(write(tmp_path / "b.zip", {"x.png": png(0), "cat/y.png": png(0)}))
    with pytest.raises(UserError, match=r"no image files in .*c\.tar"):
        load(write(tmp_path / "c.tar", {"x.txt": b""}))


def test_classes_stand_beside_the_images_as_in_webdataset(tmp_path):
    contents = {}
    for k, name in enumerate(["dog", "cat", "dog"]):
        contents |= {f"{k}.seg.png": png(200), f"{k}.cls": name.encode(), f"{k}.png": png(k)}
    store = load(write(tmp_path / "names.tar", contents))
    assert store.class_names == ("cat", "dog") and store.labels.tolist() == [0, 1, 1]
    archive = tmp_path / "names.tar"
    assert not archives.open_archives([archive], tmp_path).listing.left_out  # what says the classes is used
    unused = write(tmp_path / "unused.tar", {"a/0.png": png(0), "a/notes.txt": b"", "a/x.json": b"{}"})
    assert archives.open_archives([unused], tmp_path).listing.left_out == {".txt": 1, ".json": 1}
    assert store.items[:, 0, 0, 0].tolist() == [1, 0, 2]
    contents = {f"{k}.png": png(k) for k in range(3)}
    contents |= {f"{k}.json": json.dumps({"caption": "x", "label": 2 * (k % 2)}).encode() for k in range(3)}
    store = load(write(tmp_path / "numbers.tar.gz", contents))
    assert store.class_names == ("0", "1", "2") and store.labels.tolist() == [0, 0, 2]


def test_an_image_without_its_class_is_named(tmp_path):
    with pytest.raises(UserError, match=r"1\.png has no class beside it"):
        load(write(tmp_path / "a.tar", {"0.png": png(0), "0.cls": b"3", "1.png": png(1)}))


def test_a_folder_of_archives_is_one_set(tmp_path):
    for shard in range(3):
        contents = {"0.png": png(shard), "0.cls": str(shard % 2).encode(), "1.png": png(9), "1.cls": b"1"}
        write(tmp_path / f"{shard}.tar", contents)
    store = load(tmp_path)
    assert store.labels.tolist() == [0, 0, 1, 1, 1, 1]
    assert store.items[:, 0, 0, 0].tolist() == [0, 2, 9, 1, 9, 9]
    assert (tmp_path / ".prepared").is_dir() and found({"root": str(tmp_path)}) == {"num_classes": 2}


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz"])
def test_a_member_that_is_no_image_is_named_and_can_be_left_out(tmp_path, ending):
    contents = {f"cat/{k:02}.png": png(k) for k in range(20)} | {"cat/07.png": b"no image"}
    archive = write(tmp_path / f"a{ending}", contents)
    with pytest.raises(UserError, match=rf"a{ending}: cat/07\.png: not an image"):
        load(archive)
    assert len(load(archive, on_error="skip", max_skipped=0.1)) == 19


def test_a_member_whose_bytes_are_damaged_is_named(tmp_path):
    archive = write(tmp_path / "a.zip", {"cat/0.png": png(0), "cat/1.png": png(1)})
    content = bytearray(archive.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 255
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.zip: cat/0\.png: cannot be unpacked \(Bad CRC"):
        load(archive)


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_archive_that_is_cut_off_is_refused(tmp_path, ending):
    archive = write(tmp_path / f"a{ending}", {f"cat/{k}.png": np.random.default_rng(k).bytes(999) for k in range(9)})
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(UserError, match=rf"^dataset\.root: .*a{ending} is damaged"):
        load(archive)


def test_a_changed_archive_is_prepared_anew_and_the_same_one_is_not(tmp_path, monkeypatch):
    archive = write(tmp_path / "a.zip", {"cat/0.png": png(1), "dog/0.png": png(2)})
    first = load(archive)
    monkeypatch.setattr("ddpm_cli.data.image_folder.decode", lambda *_: pytest.fail("decoded again"))
    assert load(archive).fingerprint == first.fingerprint
    monkeypatch.undo()
    write(archive, {"cat/0.png": png(3), "dog/0.png": png(2)})
    assert load(archive).fingerprint != first.fingerprint


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".zip"])
def test_a_list_that_took_long_to_make_is_kept_and_read(tmp_path, monkeypatch, ending):
    contents = {f"{k}.png": png(k) for k in range(4)} | {f"{k}.cls": "ä".encode() if k else b"\xff" for k in range(4)}
    archive = write(tmp_path / f"a{ending}", contents | {"other.cls": b""})
    fresh = load(archive)
    assert not list(tmp_path.rglob("*.index"))
    monkeypatch.setattr(archives, "_KEPT_FROM", -1.0)
    archives._members.cache_clear()
    load(archive)
    (index,) = tmp_path.rglob("*.index")
    monkeypatch.setattr(archives, "_listed", lambda *_: pytest.fail("listed again"))
    archives._members.cache_clear()
    kept = load(archive)
    assert kept.class_names == fresh.class_names == ("ä", "\ufffd")
    assert kept.fingerprint == fresh.fingerprint and kept.items.equal(fresh.items)
    monkeypatch.undo()
    for damage in ('[["a.png", "a.png"]]', "[[", "7", '[{"a": 1}]'):
        index.write_text(damage)
        archives._members.cache_clear()
        assert load(archive).fingerprint == fresh.fingerprint
    write(archive, {f"{k}.png": png(9) for k in range(4)})  # another archive under the name
    assert load(archive).labels is None
