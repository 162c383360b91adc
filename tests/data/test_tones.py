"""Tones: a function of (seed, split, index), of kinds that differ."""

import pytest
import torch

from ddpm_cli.data.tones import KINDS, tones
from ddpm_cli.errors import UserError
from ddpm_cli.media.representation import STFT, Waveform


def load(representation=None, **changed):
    knobs = {"num_sounds": 40, "seed": 0, "split": "train", "channels": 1, "sample_rate": 8000, "num_samples": 800}
    representation = representation or Waveform()
    knobs |= {"num_classes": 4, "channels": representation.channels}
    return tones(**{**knobs, **changed}, representation=representation)


def test_a_sound_depends_on_seed_split_and_index_alone():
    first = load()
    assert first.class_names == KINDS and first.labels[:5].tolist() == [0, 1, 2, 3, 0]
    assert torch.equal(load(num_sounds=80).items[:40], first.items)
    assert not torch.equal(load(seed=1).items, first.items) and not torch.equal(load(split="test").items, first.items)
    assert len({load().fingerprint, load(seed=1).fingerprint, load(STFT(fft_size=64, hop=32)).fingerprint}) == 3


def test_the_representation_does_not_change_the_sound():
    made = (store.to_file(store.items[:]).int() for store in (load(), load(STFT(fft_size=64, hop=32))))
    one, other = made
    assert (one - other).abs().max() < 100


def test_without_classes_all_kinds_are_there():
    store = load(num_classes=0)
    assert store.labels is None and torch.equal(store.items, load().items)
    with pytest.raises(UserError, match="dataset.num_classes"):
        load(num_classes=5)
    with pytest.raises(UserError, match="dataset.split"):
        load(split="all")
