"""Tones made by a formula: no files, any rate and length, a function of (seed, split, index)."""

import numpy as np
import torch

from ddpm_cli.data.checks import check_in_memory, check_split
from ddpm_cli.data.prepare.sounds import check_representation, encoded, key_of
from ddpm_cli.data.store import Store, fingerprint
from ddpm_cli.errors import UserError
from ddpm_cli.media.representation import Representation
from ddpm_cli.media.sounds import Sounds
from ddpm_cli.seeding import mix, uniform

KINDS = ("steady", "rising", "falling", "trill")
_DRAWS = 8  # random numbers set aside for a sound
_LOWEST, _HIGHEST = 0.02, 0.2  # of the sample rate


def tones(
    *,
    num_sounds: int,
    seed: int,
    split: str,
    channels: int,
    sample_rate: int,
    num_samples: int,
    num_classes: int | None,
    representation: Representation,
) -> Store:
    """A tone a sound, of random pitch, loudness, beginning and length; sound i is of kind i % num_classes.

    num_classes 0: all kinds, without labels. Sound i does not depend on num_sounds.
    """
    check_split(split, ("train", "test"))
    check_representation(representation, channels)
    num_classes = len(KINDS) if num_classes is None else num_classes
    if not 0 <= num_classes <= len(KINDS):
        raise UserError(f"dataset.num_classes must be a whole number in 0..{len(KINDS)}, got {num_classes}")
    shape = representation.shape(num_samples)
    check_in_memory(num_sounds, 2 * int(np.prod(shape)), smaller="dataset.num_samples")
    stream = mix(seed, ("train", "test").index(split))
    kinds = np.arange(num_sounds) % (num_classes or len(KINDS))
    draws = uniform(stream, np.arange(num_sounds)[:, None] * _DRAWS + np.arange(_DRAWS))
    items = np.empty((num_sounds, *shape), np.float16)
    for i, kind in enumerate(kinds):
        items[i] = encoded(_tone(KINDS[kind], draws[i], num_samples), representation)
    key = {"set": "tones", "num_sounds": num_sounds, "seed": seed, "split": split, "num_classes": num_classes}
    key |= {"num_samples": num_samples, "representation": key_of(representation)}
    return Store(
        items=torch.from_numpy(items),
        labels=torch.from_numpy(kinds.astype(np.int64)) if num_classes else None,
        class_names=KINDS[:num_classes],
        name=f"tones-{split}",
        fingerprint=fingerprint(key),
        other=Sounds(representation, num_samples, sample_rate),
    )


def _tone(kind: str, draws: np.ndarray, num_samples: int) -> np.ndarray:
    """(num_samples,) float32 in [-1, 1]. draws: (_DRAWS,) uniform in [0, 1)."""
    pitch = _LOWEST * (_HIGHEST / _LOWEST) ** draws[0]  # cycles a sample
    time = np.linspace(0, 1, num_samples)
    bend = {"steady": 0 * time, "rising": time - 0.5, "falling": 0.5 - time, "trill": 0.25 * np.sign(np.sin(50 * time))}
    phase = 2 * np.pi * np.cumsum(pitch * 2.0 ** bend[kind])
    begin, end = 0.2 * draws[1], 0.7 + 0.3 * draws[2]
    envelope = np.clip(np.minimum(time - begin, end - time) / 0.05, 0, 1)
    voice = np.sin(phase + 2 * np.pi * draws[3]) + 0.3 * draws[4] * np.sin(2 * phase)
    return (0.6 * (0.5 + 0.5 * draws[5]) * envelope * voice).astype(np.float32)
