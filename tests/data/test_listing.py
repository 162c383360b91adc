"""Which files of a folder are images, and of what class."""

import os
import subprocess
import sys

import pytest

from ddpm_cli.data.listing import count_classes, list_images
from ddpm_cli.errors import UserError


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


def paths(root, **ignore):
    return [file.path for file in list_images(root, **ignore)[0]]


def test_sub_folders_are_classes_and_images_lie_at_any_depth(tmp_path):
    touch(tmp_path, "dog/2.PNG", "cat/b/1.jpeg", "cat/a.jpg", "cat/b/deep/0.TIFF")
    files, classes = list_images(tmp_path)
    assert classes == ("cat", "dog") and count_classes(tmp_path) == 2
    assert [(file.path, file.label) for file in files] == [
        ("cat/a.jpg", 0),
        ("cat/b/1.jpeg", 0),
        ("cat/b/deep/0.TIFF", 0),
        ("dog/2.PNG", 1),
    ]


def test_a_flat_folder_has_no_classes(tmp_path):
    touch(tmp_path, "b.png", "a.webp")
    files, classes = list_images(tmp_path)
    assert [(file.path, file.label) for file in files] == [("a.webp", -1), ("b.png", -1)]
    assert classes == () and count_classes(tmp_path) == 0


def test_hidden_files_other_files_and_the_cache_are_left_out(tmp_path):
    touch(tmp_path, "a/1.png", "a/.2.png", "a/notes.txt", "README.md")
    touch(tmp_path, ".DS_Store", ".prepared/x/0.png", "cache/x/0.png")
    assert paths(tmp_path, ignore=tmp_path / "cache") == ["a/1.png"]
    assert count_classes(tmp_path, tmp_path / "cache") == 1


def test_a_folder_with_loose_images_and_classes_is_refused(tmp_path):
    touch(tmp_path, "a/1.png", "loose.png")
    with pytest.raises(UserError, match=r"^dataset\.root: .*loose\.png.*\(a\)"):
        list_images(tmp_path)


def test_an_empty_folder_beside_loose_images_does_no_harm(tmp_path):
    touch(tmp_path, "1.png", "texts/a.txt")
    assert paths(tmp_path) == ["1.png"] and count_classes(tmp_path) == 0


def test_an_empty_class_is_refused(tmp_path):
    touch(tmp_path, "a/1.png")
    (tmp_path / "b").mkdir()
    for question in (list_images, count_classes):
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
        list_images(root)


def test_splits_in_place_of_classes_draw_a_warning(tmp_path, caplog):
    touch(tmp_path, "train/cat/1.png", "test/cat/1.png")
    list_images(tmp_path)
    assert f"dataset.root={tmp_path / 'test'}" in caplog.text


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "root/a/1.png", "elsewhere/2.png")
    os.symlink(tmp_path / "root" / "a", tmp_path / "root" / "a" / "again")
    os.symlink(tmp_path / "elsewhere", tmp_path / "root" / "b")
    assert paths(tmp_path / "root") == ["a/1.png", "b/2.png"]


def test_a_link_that_leads_nowhere_is_listed(tmp_path):
    touch(tmp_path, "1.png")
    os.symlink(tmp_path / "gone.png", tmp_path / "2.png")
    assert [file.size for file in list_images(tmp_path)[0]] == [1, -1]


def test_counting_imports_nothing_heavy():
    script = "import sys, ddpm_cli.data.listing; sys.exit(not {'torch', 'numpy', 'PIL'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
