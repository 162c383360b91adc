"""One sound file, of whatever kind, as mono samples at one rate."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from ddpm_cli.errors import UserError
from ddpm_cli.media.base import DecodeError

_MARGIN = 64  # samples at the lower rate that are read beyond a piece, for the resampling filter
_PEAK = 0.95  # of full scale, of a recording brought to one loudness

File = Path | IO[bytes]


def read(file: File, sample_rate: int, num_samples: int, *, start: float = 0.0, normalize: bool = True) -> np.ndarray:
    """(num_samples,) float32 in [-1, 1] from `start` (seconds) on: channels averaged, resampled, silence appended.

    normalize: scaled to a peak of 0.95, unless it is silent. DecodeError where there is nothing to read.
    """
    with _opened(file) as sound:
        rate = sound.samplerate
        wanted = math.ceil((num_samples + _MARGIN) * max(rate / sample_rate, 1.0)) + _MARGIN
        first = round(start * rate)
        if sound.frames > 0 and first < sound.frames:
            sound.seek(first)
        samples = sound.read(wanted, dtype="float32", always_2d=True)
    if len(samples) == 0:
        raise DecodeError("no samples")
    mono = samples.mean(1)
    if not np.isfinite(mono).all():
        raise DecodeError("samples that are not finite")
    if rate != sample_rate:
        mono = _resampled(mono, rate, sample_rate)
    found = np.zeros(num_samples, np.float32)
    found[: min(len(mono), num_samples)] = mono[:num_samples]
    peak = float(np.abs(found).max())
    if normalize and peak > 0:
        found *= _PEAK / peak
    return found.clip(-1, 1)


def seconds_of(file: File) -> float:
    """How long a file is, by its header."""
    with _opened(file) as sound:
        return sound.frames / sound.samplerate


@contextmanager
def _opened(file: File) -> Iterator[Any]:
    """soundfile's view of a file. DecodeError for what is none."""
    soundfile = _soundfile()
    if isinstance(file, Path) and not file.exists():
        raise DecodeError("no such file")
    try:
        with soundfile.SoundFile(file) as sound:
            yield sound
    except DecodeError:
        raise
    except (soundfile.SoundFileError, RuntimeError, OSError, ValueError) as error:
        empty = isinstance(file, Path) and file.stat().st_size == 0
        raise DecodeError("empty file" if empty else f"not a sound ({_reason(error)})") from error


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package without its library
        raise UserError(
            'sounds are read by soundfile, which is not installed: pip install "ddpm_cli[audio]"'
        ) from error
    return soundfile


def _reason(error: Exception) -> str:
    return str(error).rpartition(": ")[2].strip().rstrip(".") or type(error).__name__


def _resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """By polyphase filtering, without aliases."""
    from scipy.signal import resample_poly

    common = math.gcd(rate, wanted)
    return resample_poly(samples, wanted // common, rate // common).astype(np.float32)
