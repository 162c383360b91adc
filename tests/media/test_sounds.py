"""Sounds outside the model: files, pictures, tracks, gaps, and what listens to them."""

import pytest
import torch

from ddpm_cli.media.representation import STFT, Waveform
from ddpm_cli.media.sounds import Sounds
from ddpm_cli.media.spectrogram import log_mel, mel_distance, picture

MEDIA = [Sounds(STFT(fft_size=126, hop=63), 3000, 8000), Sounds(Waveform(), 3000, 8000)]


def items(count=3, length=3000):
    pitch = torch.tensor([200.0, 800.0, 3000.0])[:count, None]
    return (20000 * torch.sin(2 * torch.pi * pitch * torch.arange(length) / 8000)).to(torch.int16)


@pytest.mark.parametrize("medium", MEDIA)
def test_items_survive_the_way_to_the_model_and_back(medium):
    x = medium.to_model(items())
    assert tuple(x.shape[1:]) == medium.item_shape and x.abs().max() <= 1.5
    back = medium.to_file(x)
    assert back.dtype == medium.file_dtype and tuple(back.shape[1:]) == medium.file_shape
    assert (back.int() - items().int()).abs().max() <= 2


@pytest.mark.parametrize("medium", MEDIA)
def test_what_is_out_of_range_is_clamped_and_not_wrapped(medium):
    found = medium.to_file(9 * torch.ones(1, *medium.item_shape))
    assert found.abs().max() == 32767


def test_saved_sounds_are_loaded_to_the_bit(tmp_path):
    medium = MEDIA[0]
    path = medium.save(items()[0], tmp_path / "a.wav")
    assert torch.equal(medium.load(path), items()[0])
    with pytest.raises(FileNotFoundError):
        medium.load(tmp_path / "b.wav")


def test_a_track_holds_all_sounds_one_after_the_other_with_pauses():
    track = MEDIA[0].track(items())
    pause = round(0.2 * 8000)
    assert track.sample_rate == 8000 and len(track.samples) == 3 * (3000 + pause)
    assert torch.equal(track.samples[3000 + pause :][:3000], items()[1]) and not track.samples[3000:][:pause].any()


def test_a_picture_shows_a_tone_where_it_is_and_silence_as_black():
    low, high, silent = (picture(x, 8000).float() for x in (*(items()[[0, 2]].float() / 32768), torch.zeros(3000)))
    assert low.shape == (3, 88, 128)
    bright = [image[:, 24:].sum(0).mean(1).argmax() for image in (low, high)]
    assert bright[0] > 55 and bright[1] < 20  # rows from the top
    assert silent[:, 24:].max() <= 4
    assert MEDIA[0].pictures(items()).dtype == torch.uint8


def test_log_mel_tells_tones_apart_and_does_not_change_with_the_batch():
    x = items().float() / 32768
    found = log_mel(x, 8000)
    assert found.ndim == 4 and found.abs().max() < 2 and torch.isfinite(log_mel(torch.zeros(1, 3000), 8000)).all()
    torch.testing.assert_close(log_mel(x[1:2], 8000), found[1:2])
    assert mel_distance(x, x, 8000).max() == 0 and mel_distance(x[:1], x[2:], 8000) > 0.3


@pytest.mark.parametrize("medium", MEDIA)
def test_a_gap_is_masked_in_the_model_and_taken_out_where_it_is_shown(medium):
    mask = medium.masks({"gap": [0.1, 0.2], "mask": None})
    torch.broadcast_to(mask[0], medium.item_shape)
    left = medium.without(items()[0], mask[0])
    assert not left[900:1500].any() and torch.equal(left[:600], medium.to_file(medium.to_model(items()[:1]))[0][:600])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"gap": None, "mask": None}, "edit.gap: say from when to when"),
        ({"gap": None, "mask": "a.png"}, "edit.mask is of images"),
        ({"gap": [0.2, 0.1]}, "must begin before it ends"),
        ({"gap": [5.0, 6.0]}, "within the 0.375 s"),
    ],
)
def test_gaps_that_are_none_are_refused(edit, message):
    with pytest.raises(ValueError, match=message):
        MEDIA[0].masks(edit)
