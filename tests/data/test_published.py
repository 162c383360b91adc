"""torchvision's sets by name: photographs, letters, a set in one piece; what is told of a name that is none."""

import numpy as np
import pytest
import torch
from commands import run
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from ddpm_cli.data import published as module
from ddpm_cli.data.published import found, published
from ddpm_cli.errors import UserError, WorldError


def load(root, name, **changed):
    node = {"name": name, "root": str(root), "cache": None, "download": False, "split": "train", "num_classes": None}
    return published(**{**node, **{k: v for k, v in found(node).items() if k != "num_classes"}, **changed})


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


@pytest.fixture
def flowers(tmp_path, monkeypatch):
    """Six photographs 90 by 70, image n of the grey level 10 n, the even ones of the training split."""
    folder = tmp_path / "data" / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 7):
        Image.new("RGB", (90, 70), (10 * number,) * 3).save(folder / f"jpg/image_{number:05d}.jpg", quality=95)
    savemat(folder / "imagelabels.mat", {"labels": [[1, 2, 3, 4, 5, 102]]})
    savemat(folder / "setid.mat", {"trnid": [[2, 4, 6]], "valid": [[1]], "tstid": [[3, 5]]})
    monkeypatch.setattr(
        datasets.Flowers102, "_file_dict", {"label": ("imagelabels.mat", None), "setid": ("setid.mat", None)}
    )
    return tmp_path / "data"


def test_photographs_are_brought_to_one_size_with_the_labels_of_their_split(flowers):
    train, test = load(flowers, "Flowers102"), load(flowers, "Flowers102", split="test", image_size=[16, 8], channels=1)
    assert train.item_shape == (3, 64, 64) and train.labels.tolist() == [1, 3, 101] and train.num_classes == 102
    assert [int(image.float().mean().round()) for image in train.items] == [20, 40, 60]
    assert test.item_shape == (1, 16, 8) and test.labels.tolist() == [2, 4]
    assert train.fingerprint != test.fingerprint and load(flowers, "Flowers102", num_classes=0).labels is None


def test_a_prepared_set_does_without_its_files(flowers):
    first = load(flowers, "Flowers102")
    (flowers / "flowers-102").rename(flowers / "elsewhere")
    assert load(flowers, "Flowers102").fingerprint == first.fingerprint
    with pytest.raises(UserError, match=r"dataset\.download=true or dataset\.root=PATH"):
        load(flowers, "Flowers102", image_size=8)


def test_letters_stand_upright_and_count_from_0(tmp_path):
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28)).astype(np.uint8)
    (raw / "emnist-letters-train-images-idx3-ubyte").write_bytes(idx(images))
    (raw / "emnist-letters-train-labels-idx1-ubyte").write_bytes(idx(np.array([1, 2, 26, 1], np.uint8)))
    store = load(tmp_path, "EMNIST-letters")
    assert store.labels.tolist() == [0, 1, 25, 0] and store.class_names[0] == "a" and len(store.class_names) == 26
    assert torch.equal(store.items[:, 0], torch.from_numpy(images).mT)


def test_a_set_in_one_piece_is_split_and_its_classes_have_their_names(tmp_path):
    for number in range(12):
        folder = tmp_path / "eurosat" / "2750" / f"Land{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / f"{number}.png")
    counts = {split: len(load(tmp_path, "EuroSAT", split=split)) for split in ("all", "train", "test")}
    assert counts == {"all": 12, "train": 10, "test": 2}
    assert load(tmp_path, "EuroSAT").class_names[:2] == ("Land0", "Land1")


def test_every_set_is_one_of_torchvisions_and_takes_what_it_is_told():
    import inspect

    for name, known in module._SETS.items():
        dataset = getattr(datasets, name.partition("-")[0])
        taken = {key for cls in dataset.__mro__[:3] for key in inspect.signature(cls.__init__).parameters}
        for split in known.splits.values():
            assert {*split, *known.more, "download"} <= taken, name


def test_a_download_that_fails_is_the_worlds_fault(tmp_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("no network")

    monkeypatch.setattr(datasets.EuroSAT, "download", refuse)
    with pytest.raises(WorldError, match="EuroSAT could not be downloaded to .*no network"):
        load(tmp_path, "EuroSAT", download=True)


@pytest.mark.parametrize(
    "name, told",
    [
        ("flowers102", "did you mean Flowers102?"),
        ("EMNIST", "did you mean EMNIST-"),
        ("CIFAR10", "did you mean dataset=cifar10"),
        ("xyzzy", "there are Caltech101, "),
    ],
)
def test_an_unknown_name_is_told_with_those_that_are_near(name, told, tmp_path):
    done = run("train", "dataset=torchvision", f"dataset.name={name}", "dry_run=true", cwd=tmp_path, check=False)
    assert done.returncode == 2 and done.stderr.startswith(f"error: dataset.name={name}: no such set")
    assert told in done.stderr and len(done.stderr.splitlines()) <= 3


def test_a_split_that_the_set_lacks_is_refused(tmp_path):
    with pytest.raises(UserError, match="dataset.split must be one of train, test, got 'val'"):
        load(tmp_path, "Food101", split="val")


def test_a_run_trains_on_a_named_set_and_knows_its_shape_beforehand(flowers):
    few = "model=cnn model.channels=[4,8] training.batch_size=4 training.num_samples=2 sampler.num_steps=2".split()
    typed = ["dataset=torchvision", "dataset.name=Flowers102", "dataset.image_size=8", f"dataset.root={flowers}", *few]
    plan = run("train", *typed, "dry_run=true", cwd=flowers).stdout
    assert "parameters: " in plan
    run("train", *typed, "training.num_steps=2", "run_dir=run", cwd=flowers)
    assert "num_classes: 102" in (flowers / "run/config.yaml").read_text()
    missing = run("train", "dataset=torchvision", cwd=flowers, check=False)
    assert missing.returncode == 2 and "dataset.name is required: add dataset.name=Food101" in missing.stderr
