"""Spectrograms: as a picture for people, and by mel bands for what listens in their place."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_WIDTH, _HEIGHT, _WAVE_HEIGHT = 128, 64, 24  # pixels
_QUIET, _LOUD = -75.0, -15.0  # dB of full scale: black and white
_WINDOW = 0.032  # seconds
# Dark to bright, evenly spaced; between them colours are mixed (after matplotlib's magma).
_COLOURS = ((0, 0, 4), (40, 17, 89), (114, 31, 129), (182, 54, 121), (241, 96, 93), (254, 175, 119), (252, 253, 191))
_MEL_BANDS, _MEL_FRAMES = 40, 48
_MEL_FLOOR = 1e-5
MEL_INPUT = f"log-mel spectrogram, {_MEL_BANDS} bands, {_MEL_FRAMES} frames"


def picture(samples: Tensor, sample_rate: int) -> Tensor:
    """(L,) float32 in [-1, 1] -> uint8 (3, 88, 128): the waveform, and below it the spectrogram, low tones at the
    bottom."""
    return torch.cat([_wave(samples), _coloured(_levels(samples, sample_rate))], 1)


def log_mel(samples: Tensor, sample_rate: int) -> Tensor:
    """(B, L) float32 in [-1, 1] -> (B, 1, 40, 48) of about [-1, 1]: logarithms of the energy in mel bands over time."""
    size = _frame(sample_rate)
    power = _stft(samples, size, max(1, math.ceil(samples.shape[-1] / (_MEL_FRAMES - 1)))).square()
    energy = _mel_filters(size // 2 + 1, sample_rate).to(power) @ power
    logs = torch.log10(energy + _MEL_FLOOR) / 2.5 + 1
    return F.interpolate(logs[:, None], (_MEL_BANDS, _MEL_FRAMES), mode="bilinear")


def mel_distance(a: Tensor, b: Tensor, sample_rate: int) -> Tensor:
    """(B, L), (B, L) -> (B,): root mean square of the difference of their log-mel spectrograms."""
    return (log_mel(a, sample_rate) - log_mel(b, sample_rate)).square().mean((1, 2, 3)).sqrt()


def _frame(sample_rate: int) -> int:
    """Samples of a window: a power of two."""
    return max(16, 2 ** round(math.log2(_WINDOW * sample_rate)))


def _stft(samples: Tensor, size: int, hop: int) -> Tensor:
    """Magnitudes (..., F, T), of a full-scale sine 1."""
    window = torch.hann_window(size, device=samples.device)
    spectrum = torch.stft(samples, size, hop, window=window, pad_mode="constant", return_complex=True)
    return spectrum.abs() / (size / 4)


def _levels(samples: Tensor, sample_rate: int) -> Tensor:
    """(64, 128) in [0, 1], quiet to loud; row 0 is the highest tone."""
    magnitude = _stft(samples, _frame(sample_rate), max(1, math.ceil(len(samples) / (_WIDTH - 1))))
    level = 20 * torch.log10(magnitude.clamp_min(1e-8))
    level = ((level - _QUIET) / (_LOUD - _QUIET)).clamp(0, 1)
    return F.interpolate(level[None, None], (_HEIGHT, _WIDTH), mode="bilinear")[0, 0].flip(0)


def _coloured(levels: Tensor) -> Tensor:
    """(H, W) in [0, 1] -> uint8 (3, H, W)."""
    colours = torch.tensor(_COLOURS, dtype=torch.float32)
    place = levels * (len(colours) - 1)
    low = place.long().clamp_max(len(colours) - 2)
    share = (place - low)[..., None]
    mixed = colours[low] * (1 - share) + colours[low + 1] * share
    return mixed.round().to(torch.uint8).movedim(-1, 0)


def _wave(samples: Tensor) -> Tensor:
    """uint8 (3, 24, 128): from the least to the greatest sample of each column."""
    columns = F.pad(samples, (0, -len(samples) % _WIDTH)).view(_WIDTH, -1)
    half = (_WAVE_HEIGHT - 1) / 2
    top, bottom = (half - half * columns.amax(1)).floor(), (half - half * columns.amin(1)).ceil()
    rows = torch.arange(_WAVE_HEIGHT)[:, None]
    drawn = (rows >= top) & (rows <= bottom)
    ink, paper = torch.tensor([31, 78, 121]), torch.tensor([247, 247, 250])
    return torch.where(drawn, ink[:, None, None], paper[:, None, None]).to(torch.uint8)


def _mel_filters(num_bins: int, sample_rate: int) -> Tensor:
    """(40, num_bins): triangles evenly spaced on the mel scale, 2595 log10(1 + f / 700) (O'Shaughnessy 1987), each of
    sum 1."""
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, _MEL_BANDS + 2) / 2595) - 1)
    bins = torch.linspace(0, sample_rate / 2, num_bins)
    left, middle, right = (edges[i : i + _MEL_BANDS, None] for i in range(3))
    # No band is narrower than the spacing of the bins, or it would see none.
    width = bins[1]
    rise = (bins - torch.minimum(left, middle - width)) / (middle - torch.minimum(left, middle - width))
    fall = (torch.maximum(right, middle + width) - bins) / (torch.maximum(right, middle + width) - middle)
    filters = torch.minimum(rise, fall).clamp_min(0)
    return filters / filters.sum(1, keepdim=True).clamp_min(1e-8)
