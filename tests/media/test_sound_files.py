"""Sound files of every kind become mono samples at one rate; what is none is named."""

import io
import wave

import numpy as np
import pytest

from ddpm_cli.errors import UserError
from ddpm_cli.media import sound_files
from ddpm_cli.media.base import DecodeError
from ddpm_cli.media.wav import read_wav, write_wav

soundfile = pytest.importorskip("soundfile")
RATE = 8000


def tone(rate, seconds=0.5, pitch=440.0):
    return 0.4 * np.sin(2 * np.pi * pitch * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize(
    ("name", "rate", "subtype"),
    [
        ("a.wav", 8000, "PCM_16"),
        ("a.wav", 44100, "PCM_24"),
        ("a.wav", 48000, "FLOAT"),
        ("a.flac", 22050, "PCM_16"),
        ("a.ogg", 44100, "VORBIS"),
        ("a.wav", 4000, "PCM_U8"),
    ],
)
def test_files_of_any_rate_and_depth_give_the_same_sound(tmp_path, name, rate, subtype):
    soundfile.write(tmp_path / name, tone(rate), rate, subtype=subtype)
    found = sound_files.read(tmp_path / name, RATE, 3000, normalize=False)
    assert found.shape == (3000,) and found.dtype == np.float32
    error = np.abs(found - tone(RATE)[:3000])[200:2800].max()
    assert error < (0.05 if subtype in ("VORBIS", "PCM_U8") else 0.005)


def test_channels_are_averaged_and_short_sounds_filled_up(tmp_path):
    left = tone(RATE, 0.1)
    soundfile.write(tmp_path / "a.wav", np.stack([left, 0 * left], 1), RATE, subtype="FLOAT")
    found = sound_files.read(tmp_path / "a.wav", RATE, 2000, normalize=False)
    np.testing.assert_allclose(found[:800], left / 2, atol=1e-6)
    assert not found[800:].any()


def test_a_long_file_is_read_from_where_it_is_asked_for(tmp_path):
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 60 * RATE)
    soundfile.write(tmp_path / "a.wav", sound, RATE, subtype="FLOAT")
    assert sound_files.seconds_of(tmp_path / "a.wav") == 60
    found = sound_files.read(tmp_path / "a.wav", RATE, 1000, start=30.0, normalize=False)
    np.testing.assert_allclose(found, sound[30 * RATE :][:1000], atol=1e-6)


def test_normalized_is_the_peak_and_silence_stays_silent(tmp_path):
    for name, gain in (("quiet", 0.01), ("loud", 1.0), ("silent", 0.0)):
        soundfile.write(tmp_path / f"{name}.wav", gain * tone(RATE), RATE, subtype="FLOAT")
    quiet, loud, silent = (sound_files.read(tmp_path / f"{n}.wav", RATE, 4000) for n in ("quiet", "loud", "silent"))
    np.testing.assert_allclose(quiet, loud, atol=1e-4)
    assert np.abs(loud).max() == pytest.approx(0.95) and not silent.any()


def test_what_is_written_is_read_back_to_the_bit_and_by_others(tmp_path):
    samples = np.random.default_rng(0).integers(-32768, 32768, 777).astype(np.int16)
    path = write_wav(tmp_path / "a.wav", samples, 16000)
    assert (read_wav(path) == samples).all()
    others, rate = soundfile.read(path, dtype="int16")
    assert rate == 16000 and (others == samples).all()
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def header_only():
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", "not compressed"))
    return data.getvalue()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty file"),
        (b"RIFF\0\0\0\0WAVEjunk", "not a sound"),
        (b"hello" * 50, "not a sound"),
        (header_only(), "no samples"),
    ],
)
def test_what_is_no_sound_is_named(tmp_path, content, why):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(DecodeError, match=why):
        sound_files.read(tmp_path / "a.wav", RATE, 100)


def test_samples_that_are_not_finite_are_named(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([0.0, np.nan, 1.0]), RATE, subtype="FLOAT")
    with pytest.raises(DecodeError, match="not finite"):
        sound_files.read(tmp_path / "a.wav", RATE, 100)


def test_without_soundfile_one_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(UserError, match=r'pip install "ddpm_cli\[audio\]"'):
        sound_files.read(tmp_path / "a.wav", RATE, 100)
