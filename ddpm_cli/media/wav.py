"""WAV files of 16 bits, as this program writes them: nothing is needed for them but the standard library."""

import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ddpm_cli.system.files import replacing


@dataclass(frozen=True)
class Track:
    """A sound to be listened to."""

    samples: Tensor  # (L,) int16
    sample_rate: int  # Hz

    def save(self, path: Path) -> Path:
        """As write_wav."""
        return write_wav(path, self.samples.cpu().numpy(), self.sample_rate)


def write_wav(path: Path, samples: np.ndarray, sample_rate: int) -> Path:
    """samples: (L,) int16. Written whole or not at all."""
    with replacing(path) as temporary, wave.open(str(temporary), "wb") as file:
        file.setparams((1, 2, sample_rate, len(samples), "NONE", "not compressed"))
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def read_wav(path: Path) -> np.ndarray:
    """(L,) int16, what write_wav wrote."""
    with open(path, "rb") as opened, wave.open(opened) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.int16)
