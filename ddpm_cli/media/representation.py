"""What the model sees of a sound: its samples, or its spectrum over time. Both lead back to the samples."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Representation(Protocol):
    """(samples) <-> (what the model draws). Values lie in [-1, 1] for all but the loudest sounds."""

    channels: int

    def shape(self, num_samples: int) -> tuple[int, ...]:
        """(channels, ...) of a sound of so many samples."""
        ...

    def encode(self, samples: Tensor) -> Tensor:
        """(B, L) float32 in [-1, 1] -> (B, *shape(L))."""
        ...

    def decode(self, x: Tensor, num_samples: int) -> Tensor:
        """(B, *shape(L)) -> (B, L)."""
        ...

    def span(self, first: int, last: int, num_samples: int) -> Tensor:
        """Which entries know of the samples from `first` to before `last`: bool, (1, 1, ..., time)."""
        ...


@dataclass(frozen=True)
class Waveform(Representation):
    """The samples themselves, each x as sign(x) |x|^exponent: quiet ones, of which speech is full, take more room."""

    channels: int = 1
    exponent: float = 0.5

    def __post_init__(self) -> None:
        if self.channels != 1:
            raise ValueError(f"representation.channels of a waveform is 1, got {self.channels}")

    def shape(self, num_samples: int) -> tuple[int, ...]:
        return (1, num_samples)

    def encode(self, samples: Tensor) -> Tensor:
        return _compressed(samples, self.exponent)[:, None]

    def decode(self, x: Tensor, num_samples: int) -> Tensor:
        return _compressed(x[:, 0], 1 / self.exponent)

    def span(self, first: int, last: int, num_samples: int) -> Tensor:
        places = torch.arange(num_samples)
        return ((places >= first) & (places < last))[None, None]


@dataclass(frozen=True)
class STFT(Representation):
    """The short-time Fourier transform, real and imaginary part as the two channels of an image (frequency, time), each
    entry's magnitude m as scale m^exponent, its phase kept: the amplitude transformation of SGMSE (Welker, Richter and
    Gerkmann 2022).

    fft_size: samples of a frame; half of them and one are the frequencies. hop: samples from one frame to the next, at
    most half of fft_size. frames_multiple: silence is appended until the frames are a multiple of it, which a U-Net
    needs. Magnitudes are relative to those of a full-scale sine.
    """

    channels: int = 2
    fft_size: int = 254
    hop: int = 127
    exponent: float = 0.5
    scale: float = 1.0
    frames_multiple: int = 8

    def __post_init__(self) -> None:
        if self.channels != 2:
            raise ValueError(f"representation.channels of a spectrum is 2 (real, imaginary), got {self.channels}")
        if self.fft_size % 2:
            raise ValueError(f"representation.fft_size must be even, got {self.fft_size}")
        if self.hop * 2 > self.fft_size:
            raise ValueError(
                f"representation.hop={self.hop} must be at most half of representation.fft_size={self.fft_size}, "
                "or the samples could not be had back"
            )

    def shape(self, num_samples: int) -> tuple[int, ...]:
        frames = math.ceil(num_samples / self.hop) + 1
        return (2, self.fft_size // 2 + 1, math.ceil(frames / self.frames_multiple) * self.frames_multiple)

    def encode(self, samples: Tensor) -> Tensor:
        _, _, frames = self.shape(samples.shape[-1])
        padded = torch.nn.functional.pad(samples, (0, (frames - 1) * self.hop - samples.shape[-1]))
        window = self._window(samples)
        spectrum = torch.stft(
            padded, self.fft_size, self.hop, window=window, pad_mode="constant", return_complex=True
        )  # (B, F, T)
        return torch.view_as_real(self._compressed(spectrum / self._full_scale)).movedim(-1, 1).contiguous()

    def decode(self, x: Tensor, num_samples: int) -> Tensor:
        spectrum = torch.view_as_complex(x.float().movedim(1, -1).contiguous())
        magnitude = spectrum.abs()
        factor = (magnitude / self.scale).pow(1 / self.exponent) / magnitude.clamp_min(torch.finfo(x.dtype).tiny)
        window, length = self._window(x), (x.shape[-1] - 1) * self.hop
        samples = torch.istft(
            spectrum * factor * self._full_scale, self.fft_size, self.hop, window=window, length=length
        )
        return samples[:, :num_samples]

    def span(self, first: int, last: int, num_samples: int) -> Tensor:
        _, _, frames = self.shape(num_samples)
        centres, half = torch.arange(frames) * self.hop, self.fft_size // 2
        return ((centres + half > first) & (centres - half < last))[None, None, None]

    @property
    def _full_scale(self) -> float:
        """The magnitude of a full-scale sine."""
        return self.fft_size / 4  # half of the sum of a Hann window

    def _window(self, like: Tensor) -> Tensor:
        return torch.hann_window(self.fft_size, device=like.device)

    def _compressed(self, spectrum: Tensor) -> Tensor:
        magnitude = spectrum.abs()
        return spectrum * (self.scale * magnitude.pow(self.exponent) / magnitude.clamp_min(1e-12))


def _compressed(samples: Tensor, exponent: float) -> Tensor:
    return samples.sign() * samples.abs().pow(exponent)
