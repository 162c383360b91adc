"""Folders of recordings: classes, pieces, splits, and files that cannot be read."""

import logging

import archive_files
import numpy as np
import pytest
import torch

from ddpm_cli.data.audio_folder import audio_folder, found
from ddpm_cli.errors import UserError
from ddpm_cli.media.representation import STFT, Waveform

soundfile = pytest.importorskip("soundfile")
RATE = 8000


def write(path, seconds=0.1, gain=0.5, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(rate * seconds)) / rate
    soundfile.write(path, gain * np.sin(2 * np.pi * 500 * time), rate)


def load(root, representation=None, **changed):
    knobs = {
        "root": str(root), "cache": None, "split": "all", "channels": 1, "sample_rate": RATE, "num_samples": 1000,
        "long": "cut", "normalize": True, "label_pattern": None, "num_classes": None, "on_error": "stop",
    }  # fmt: skip
    representation = representation or Waveform()
    return audio_folder(**{**knobs, "channels": representation.channels, **changed}, representation=representation)


def test_sub_folders_are_classes_and_all_kinds_of_files_are_found(tmp_path):
    for name in ("dog/a.wav", "cat/b.flac", "cat/deep/c.ogg"):
        write(tmp_path / name)
    (tmp_path / "cat/readme.txt").write_text("no sound")
    store = load(tmp_path)
    assert store.class_names == ("cat", "dog") and store.labels.tolist() == [0, 0, 1]
    assert store.item_shape == (1, 1000) and store.items.dtype == torch.float16
    sounds = store.to_file(store.items[:])
    assert sounds.dtype == torch.int16 and sounds.shape == (3, 1000)
    assert 0.93 < sounds[:, :800].max() / 32767 < 0.96 and not sounds[:, 801:].any()
    assert load(tmp_path).fingerprint == store.fingerprint
    assert load(tmp_path, STFT(fft_size=64, hop=32)).fingerprint != store.fingerprint


def test_classes_may_stand_in_the_names(tmp_path):
    for name in ("yes_1.wav", "no_1.wav", "no_2.wav"):
        write(tmp_path / name)
    store = load(tmp_path, label_pattern="^([a-z]+)_")
    assert store.class_names == ("no", "yes") and store.labels.tolist() == [0, 0, 1]
    wrong = {"(": "no regular expression", "^[a-z]+": "must have one group", "^(x)": "finds no class in"}
    for pattern, told in wrong.items():
        with pytest.raises(UserError, match=told):
            load(tmp_path, label_pattern=pattern)


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz"])
def test_archives_are_the_set_of_their_folder(tmp_path, ending):
    names = [f"{name}/{name}_{k}.wav" for name in ("cat", "dog") for k in range(3)]
    for k, name in enumerate(names):
        write(tmp_path / "folder" / name, seconds=0.1 + 0.05 * k, gain=0.1 + k / 20)
    contents = {name: (tmp_path / "folder" / name).read_bytes() for name in reversed(names)}
    archive = archive_files.write(tmp_path / f"a{ending}", contents | {"notes.txt": b""})
    for changed in ({"long": "split"}, {}, {"label_pattern": "([a-z]+)_[0-9]"}, {"split": "test"}):
        folder, packed = load(tmp_path / "folder", **changed), load(archive, **changed)
        assert packed.class_names == folder.class_names == ("cat", "dog")
        assert packed.labels.equal(folder.labels) and packed.items.equal(folder.items)
        assert packed.fingerprint == folder.fingerprint
    assert found({"root": str(archive)}) == {"num_classes": 2}


def test_classes_stand_beside_recordings_in_shards_and_a_bad_one_is_named(tmp_path):
    write(tmp_path / "a.wav")
    good = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        contents = {"0.wav": good, "0.cls": b"dog", "1.wav": good if shard else b"RIFF", "1.json": b'{"label": "cat"}'}
        archive_files.write(tmp_path / f"shards/{shard}.tar", contents)
    with pytest.raises(UserError, match=r"0\.tar: 1\.wav: not a sound"):
        load(tmp_path / "shards")
    store = load(tmp_path / "shards", on_error="skip", max_skipped=0.5)
    assert store.class_names == ("cat", "dog") and store.labels.tolist() == [0, 1, 1]


def test_long_recordings_are_cut_or_split_into_pieces(tmp_path):
    write(tmp_path / "a.wav", seconds=0.55)  # 4400 samples
    write(tmp_path / "b.wav", seconds=0.05)
    assert len(load(tmp_path)) == 2
    pieces = load(tmp_path, long="split", normalize=False)
    assert len(pieces) == 6
    sounds = pieces.to_file(pieces.items[:])
    assert [int((sound != 0).sum()) > 300 for sound in sounds] == [True] * 6
    whole = 0.5 * np.sin(2 * np.pi * 500 * np.arange(4400) / RATE) * 32767
    np.testing.assert_allclose(sounds[:5].flatten()[:4400].numpy(), whole, atol=40)


def test_every_sixth_file_is_the_test_split(tmp_path):
    for number in range(12):
        write(tmp_path / f"{number:02}.wav", gain=0.1 + number / 20)
    sizes = {split: len(load(tmp_path, split=split)) for split in ("train", "test", "all")}
    assert sizes == {"train": 10, "test": 2, "all": 12}


def test_what_cannot_be_read_is_named_and_silence_is_told(tmp_path, caplog):
    write(tmp_path / "a.wav")
    write(tmp_path / "silent.wav", gain=0.0)
    with caplog.at_level(logging.WARNING):
        load(tmp_path)
    assert "silent.wav is silent in its first 0.125 s" in caplog.text
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"bad\.wav: not a sound .*\nrepair or remove what cannot be read"):
        load(tmp_path)
    assert not list((tmp_path / ".prepared").glob("*.tmp*"))


def test_other_rates_channels_and_depths_are_brought_to_one(tmp_path):
    time = np.arange(4410) / 44100
    tone = 0.5 * np.sin(2 * np.pi * 500 * time)
    soundfile.write(tmp_path / "stereo.wav", np.stack([tone, tone], 1), 44100, subtype="PCM_24")
    write(tmp_path / "plain.wav")
    sounds = (store := load(tmp_path)).to_file(store.items[:]).float()
    torch.testing.assert_close(sounds[0, 20:780], sounds[1, 20:780], atol=400, rtol=0)


def test_what_does_not_fit_together_is_refused(tmp_path):
    with pytest.raises(UserError, match="no sound files in"):
        load(tmp_path)
    with pytest.raises(UserError, match="set dataset.root=PATH to a folder of sounds"):
        load(tmp_path / "none")
    write(tmp_path / "a.wav")
    with pytest.raises(UserError, match="dataset.channels=2: waveform makes 1"):
        load(tmp_path, channels=2)
    with pytest.raises(UserError, match="num_classes"):
        load(tmp_path, num_classes=3)
