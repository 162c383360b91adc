import pytest
from commands import run

from ddpm_cli.data.prepare.listing import of_split
from ddpm_cli.data.split import in_split


def test_every_sixth_item_is_for_testing_and_every_item_for_one_of_the_two():
    train, test = in_split(14, "train"), in_split(14, "test")
    assert [number for number, chosen in enumerate(test) if chosen] == [5, 11] and all(in_split(14, "all"))
    assert all(one != other for one, other in zip(train, test, strict=True))
    assert of_split([*"abcdefg"], "test") == ["f"] and of_split([*"abcdefg"], "train") == [*"abcdeg"]


@pytest.mark.parametrize("dataset", ["dataset=digits", "dataset=image_folder dataset.root=photos"])
def test_a_split_that_the_set_has_not_is_refused(tmp_path, dataset):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for k in range(7):
        Image.new("RGB", (8, 8)).save(tmp_path / f"photos/{k}.png")
    line = [*dataset.split(), "dataset.split=val", "training.num_steps=1", "run_dir=refused"]
    done = run("train", *line, cwd=tmp_path, check=False)
    assert done.returncode == 2 and "must be one of train, test, all" in done.stderr, done.stderr
