"""Which files of a folder are images, and of what class."""

import os
import subprocess
import sys

import pytest

from ddpm_cli.data.prepare.listing import IMAGES, class_folders, list_files
from ddpm_cli.errors import UserError


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


def paths(root, **ignore):
    return [file.path for file in list_files(root, **ignore).files]


def test_sub_folders_are_classes_and_images_lie_at_any_depth(tmp_path):
    touch(tmp_path, "dog/2.PNG", "cat/b/1.jpeg", "cat/a.jpg", "cat/b/deep/0.TIFF")
    listing = list_files(tmp_path)
    files, classes = listing.files, listing.classes
    assert classes == ("cat", "dog") and class_folders(tmp_path) == classes
    assert [(file.path, file.label) for file in files] == [
        ("cat/a.jpg", 0),
        ("cat/b/1.jpeg", 0),
        ("cat/b/deep/0.TIFF", 0),
        ("dog/2.PNG", 1),
    ]


def test_a_flat_folder_has_no_classes(tmp_path):
    touch(tmp_path, "b.png", "a.webp")
    listing = list_files(tmp_path)
    files, classes = listing.files, listing.classes
    assert [(file.path, file.label) for file in files] == [("a.webp", -1), ("b.png", -1)]
    assert classes == () and class_folders(tmp_path) == ()


def test_hidden_files_other_files_and_the_cache_are_left_out(tmp_path):
    touch(tmp_path, "a/1.png", "a/.2.png", "a/notes.txt", "README.md")
    touch(tmp_path, ".DS_Store", ".prepared/x/0.png", "cache/x/0.png")
    assert paths(tmp_path, ignore=tmp_path / "cache") == ["a/1.png"]
    assert class_folders(tmp_path, tmp_path / "cache") == ("a",)


def test_a_folder_with_loose_images_and_classes_is_refused(tmp_path):
    touch(tmp_path, "a/1.png", "loose.png")
    with pytest.raises(UserError, match=r"^dataset\.root: .*loose\.png.*\(a\)"):
        list_files(tmp_path)


def test_an_empty_folder_beside_loose_images_does_no_harm(tmp_path):
    touch(tmp_path, "1.png", "texts/a.txt")
    assert paths(tmp_path) == ["1.png"] and class_folders(tmp_path) == ()


def test_an_empty_class_is_refused(tmp_path):
    touch(tmp_path, "a/1.png")
    (tmp_path / "b").mkdir()
    for question in (list_files, class_folders):
        with pytest.raises(UserError, match=r"^dataset\.root: .*/b holds no images"):
            question(tmp_path)


@pytest.mark.parametrize("kind", ["absent", "file", "empty", "texts"])
def test_a_root_without_images_is_refused(tmp_path, kind):
    root = tmp_path / "root"
    if kind == "file":
        root.write_text("x")
    elif kind != "absent":
        root.mkdir()
    if kind == "texts":
        touch(root, "a/1.txt", "2.txt")
    with pytest.raises(UserError, match=rf"^dataset\.root: .*{root}"):
        list_files(root)


def test_splits_in_place_of_classes_draw_a_warning(tmp_path, caplog):
    touch(tmp_path, "train/cat/1.png", "test/cat/1.png")
    list_files(tmp_path).tell(tmp_path, IMAGES)
    assert f"dataset.root={tmp_path / 'test'} meant" in caplog.text


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "root/a/1.png", "elsewhere/2.png")
    os.symlink(tmp_path / "root" / "a", tmp_path / "root" / "a" / "again")
    os.symlink(tmp_path / "elsewhere", tmp_path / "root" / "b")
    assert paths(tmp_path / "root") == ["a/1.png", "b/2.png"]


def test_a_link_that_leads_nowhere_is_listed(tmp_path):
    touch(tmp_path, "1.png")
    os.symlink(tmp_path / "gone.png", tmp_path / "2.png")
    assert [file.size for file in list_files(tmp_path).files] == [1, -1]


def test_counting_imports_nothing_heavy():
    script = (
        "import sys, ddpm_cli.data.prepare.listing; sys.exit(not {'torch', 'numpy', 'PIL'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def told(root, caplog):
    caplog.clear()
    with caplog.at_level("INFO"):
        list_files(root).tell(root, IMAGES)
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_what_a_folder_holds_and_what_is_left_out_is_said_once(tmp_path, caplog):
    touch(tmp_path, "cat/1.png", "cat/2.jpg", "dog/1.png", "cat/a.txt", "dog/b.TXT", "dog/raw.dng", "LICENSE")
    assert told(tmp_path, caplog) == [
        ("INFO", f"{tmp_path}: 3 images, 2 classes: cat 2, dog 1; left out: 1 .dng, 2 .txt, 1 without an ending")
    ]
    assert told(tmp_path, caplog) == []


def test_many_classes_are_told_in_one_short_line(tmp_path, caplog):
    touch(tmp_path, *(f"{number:03}/1.png" for number in range(100)))
    ((_, message),) = told(tmp_path, caplog)
    assert "100 classes: 000 1, 001 1" in message and message.endswith("and 88 more") and len(message) < 250


def test_a_root_one_level_too_high_draws_a_warning(tmp_path, caplog):
    touch(tmp_path, "photos/cat/1.png", "photos/dog/1.png")
    _, (level, message) = told(tmp_path, caplog)
    assert level == "WARNING" and "photos/cat, photos/dog lie deeper" in message
    assert message.endswith(f"is dataset.root={tmp_path / 'photos'} meant?")


def test_folders_deeper_than_the_classes_draw_a_warning(tmp_path, caplog):
    touch(tmp_path, "cat/1.png", "cat/small/2.png", "dog/1.png")
    _, (level, message) = told(tmp_path, caplog)
    assert level == "WARNING" and "cat/small lie deeper" in message and "meant" not in message


def test_classes_one_level_deep_draw_none(tmp_path, caplog):
    touch(tmp_path, "cat/1.png", "dog/1.png")
    assert [level for level, _ in told(tmp_path, caplog)] == ["INFO"]
