"""Sounds: int16 samples, WAV files, shown as a waveform over a spectrogram."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.media import extensions as names
from ddpm_cli.media import sound_files
from ddpm_cli.media.base import Medium
from ddpm_cli.media.representation import Representation
from ddpm_cli.media.spectrogram import MEL_INPUT, log_mel, picture
from ddpm_cli.media.wav import Track, read_wav, write_wav

_FULL = 32767  # of int16
_PAUSE = 0.2  # seconds between the sounds of a track


@dataclass(frozen=True)
class Sounds(Medium):
    representation: Representation
    num_samples: int
    sample_rate: int  # Hz

    one, many, suffix, extensions = "sound", "sounds", ".wav", names.SOUNDS
    file_dtype = torch.int16
    classifier_input = MEL_INPUT

    @property
    def item_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.representation.shape(self.num_samples)

    @property
    def file_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.num_samples,)

    def to_file(self, x: Tensor) -> Tensor:
        samples = self.representation.decode(x.float(), self.num_samples)
        return (samples * _FULL).round_().clamp_(-_FULL, _FULL).to(torch.int16)

    def to_model(self, items: Tensor) -> Tensor:
        return self.representation.encode(items.float() / _FULL)

    def save(self, item: Tensor, path: Path) -> Path:
        return write_wav(path, item.cpu().numpy(), self.sample_rate)

    def load(self, path: Path) -> Tensor:
        return torch.from_numpy(read_wav(path))

    def read(self, file: Path) -> Tensor:
        samples = torch.from_numpy(sound_files.read(file, self.sample_rate, self.num_samples))
        return (samples * _FULL).round().to(torch.int16)

    def pictures(self, items: Tensor) -> Tensor:
        return torch.stack([picture(item.float() / _FULL, self.sample_rate) for item in items.cpu()])

    def track(self, items: Tensor) -> Track:
        pause = items.new_zeros(round(_PAUSE * self.sample_rate))
        return Track(torch.cat([part for item in items for part in (item, pause)]).cpu(), self.sample_rate)

    def to_classifier(self, items: Tensor) -> Tensor:
        return log_mel(items.float() / _FULL, self.sample_rate)

    def arrays(self, items: Tensor) -> Mapping[str, np.ndarray]:
        return {"sounds": items.cpu().numpy(), "sample_rate": np.array(self.sample_rate)}

    def masks(self, edit: Mapping[str, Any]) -> Tensor:
        """(1, 1, ..., time): every entry that knows of the gap."""
        if edit.get("mask") is not None:
            raise ValueError("edit.mask is of images: of a sound say edit.gap=[0.2,0.3], and leave edit.mask out")
        if edit.get("gap") is None:
            raise ValueError(
                "edit.gap: say from when to when the sound is to be made anew, in seconds: edit.gap=[0.2,0.3]"
            )
        first, last = (round(seconds * self.sample_rate) for seconds in edit["gap"])
        if not first < last or first >= self.num_samples:
            raise ValueError(
                f"edit.gap={edit['gap']} must begin before it ends, "
                f"within the {self.num_samples / self.sample_rate:g} s of a sound"
            )
        return self.representation.span(first, last, self.num_samples)

    def without(self, item: Tensor, mask: Tensor) -> Tensor:
        return self.to_file(self.to_model(item[None]).masked_fill(mask, 0.0))[0]
