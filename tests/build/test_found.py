"""What is read from files when a run begins."""

import numpy as np
import pytest

from ddpm_cli.build.found import read_table, with_values_found
from ddpm_cli.errors import UserError

VALUES = [0.9, 0.5, 0.1]


@pytest.mark.parametrize("text", ["0.9\n0.5\n0.1", "0.9,\n\n0.5,\n 0.1\n", "0.9,0.5,0.1", "0.9 0.5 0.1\n"])
def test_numbers_are_one_a_line_or_all_in_one(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    assert read_table(tmp_path / "a.csv") == VALUES
    np.save(tmp_path / "a.npy", np.array(VALUES))
    assert read_table(tmp_path / "a.npy") == VALUES


@pytest.mark.parametrize(
    "text,told",
    [
        ("0.9\n0.5\nnan\n", "finite numbers, row 3 has nan"),
        ("0.9\n-inf\nnan\n", "row 2 has -inf"),
        ("1,0.9\n2,0.5\n3,0.1\n", r"one number for each t, has shape \(3, 2\)"),
        ("1,0.9\n0.5\n", "lines hold different amounts"),
        ("t\n0.9", "could not convert string to float: 't'"),
        ("", r"has shape \(0,\)"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused_for_what_it_is(tmp_path, text, told):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=told):
        read_table(tmp_path / "a.csv")


@pytest.mark.parametrize("content", [b"", b"text"])
def test_an_array_file_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"schedule\.path: cannot read numbers from .*a\.npy"):
        read_table(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.ones((3, 2)))
    with pytest.raises(UserError, match=r"has shape \(3, 2\)"):
        read_table(tmp_path / "b.npy")


def test_a_cache_inside_the_folder_of_images_is_no_class(tmp_path):
    for folder in ("cat", "dog", "cache/set"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("cat/1.png", "dog/1.png"):
        (tmp_path / name).touch()
    target = "ddpm_cli.data.image_folder.image_folder"
    dataset = {"_target_": target, "root": str(tmp_path), "cache": str(tmp_path / "cache"), "num_classes": None}
    cfg = with_values_found({"dataset": dataset, "model": {}, "schedule": {}})
    assert cfg["dataset"]["num_classes"] == cfg["model"]["num_classes"] == 2
