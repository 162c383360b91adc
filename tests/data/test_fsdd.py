"""Free Spoken Digits: found unpacked or in an archive, downloaded, split as published."""

import hashlib
import io
import tarfile
import wave

import numpy as np
import pytest

from ddpm_cli.data import fsdd as module
from ddpm_cli.data.fsdd import FILE, fsdd
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.media.representation import Waveform

pytest.importorskip("soundfile")
SPEAKERS, NUMBERS = ("ann", "bob"), (0, 4, 5, 12)
NAMES = [f"{digit}_{speaker}_{number}.wav" for digit in range(10) for speaker in SPEAKERS for number in NUMBERS]


def wav(number):
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        file.writeframes((8000 * np.sin(np.arange(400) * (number + 1) / 40)).astype("<i2").tobytes())
    return data.getvalue()


def archive(path, folder="free-spoken-digit-dataset-1.0.9/recordings"):
    with tarfile.open(path, "w:gz") as tar:
        for number, name in enumerate(["README.md", *NAMES]):
            data = b"text" if name == "README.md" else wav(number)
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def load(root, **changed):
    knobs = {
        "root": str(root), "cache": None, "download": False, "split": "train", "held_out": 5, "channels": 1,
        "sample_rate": 8000, "num_samples": 500, "normalize": True, "num_classes": 10,
    }  # fmt: skip
    return fsdd(**{**knobs, **changed}, representation=Waveform())


def test_an_archive_is_read_as_it_lies_and_split_by_the_recordings_numbers(tmp_path):
    archive(tmp_path / "fsdd-train.tar.gz", "train")
    train, test = load(tmp_path), load(tmp_path, split="test")
    assert len(train) == len(test) == 40 and len(load(tmp_path, split="all")) == 80
    assert train.class_names == tuple("0123456789") and train.labels.bincount().tolist() == [4] * 10
    assert len(load(tmp_path, held_out=10)) == 20
    assert train.fingerprint != test.fingerprint


def test_unpacked_recordings_are_the_same_set(tmp_path):
    path = archive(tmp_path / "fsdd.tar.gz")
    with tarfile.open(path) as tar:
        (tmp_path / "unpacked").mkdir()
        tar.extractall(tmp_path / "unpacked", filter="data")
    (tmp_path / "packed").mkdir()
    path.rename(tmp_path / "packed" / path.name)
    assert load(tmp_path / "packed").fingerprint == load(tmp_path / "unpacked").fingerprint


def test_the_download_is_checked_and_kept(tmp_path, monkeypatch):
    published = archive(tmp_path / "v1.0.9.tar.gz")
    monkeypatch.setattr(module, "URL", published.as_uri())
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(published.read_bytes()).hexdigest())
    root = tmp_path / "data"
    assert len(load(root, download=True)) == 40
    assert (root / FILE).read_bytes() == published.read_bytes()
    published.unlink()
    assert len(load(root, split="test")) == 40


def test_a_download_with_a_wrong_checksum_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "URL", archive(tmp_path / "v1.0.9.tar.gz").as_uri())
    with pytest.raises(WorldError, match=rf"put {FILE} .*\nthe download failed: .*hash"):
        load(tmp_path / "data", download=True)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".download.lock"]


def test_what_is_not_there_or_damaged_is_told_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match=rf"fsdd is not in .*\nput {FILE} .* or set dataset.download=true"):
        load(tmp_path)
    path = archive(tmp_path / "fsdd.tar.gz")
    with pytest.raises(UserError, match="holds no recordings numbered of 50 and above; change dataset.held_out"):
        load(tmp_path, held_out=50)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"fsdd\.tar\.gz cannot be unpacked"):
        load(tmp_path, cache=str(tmp_path / "other"))
