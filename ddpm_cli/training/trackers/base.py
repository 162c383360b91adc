"""What a tracker offers, and all those of a run as one."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch import Tensor

log = logging.getLogger("ddpm_cli")

Settings = Mapping[str, bool | float | str]  # every choice and setting of a run by its dotted key; null is left out


class Tracker(Protocol):
    """One place to look at a run. A new one is a class here, its name in training_run/tracking.py and config/extras.py,
    and an extra in pyproject.toml.

    Steps are optimiser steps made, and never fall but after `rewind`. Tags are as TensorBoard groups them: curves/loss.
    """

    def begin(self, settings: Settings, config: str, step: int) -> None:
        """The run goes on from `step`; config: all of its configuration, as YAML."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Figures by tag."""

    def picture(self, tag: str, picture: Image.Image, step: int) -> None:
        """A preview."""

    def sound(self, tag: str, samples: Tensor, sample_rate: int, step: int, file: Path) -> None:
        """A preview, (L,) int16, that is in that WAV file too."""

    def rewind(self, step: int) -> None:
        """The run went back to `step`: what follows comes again, with a batch left out."""

    def end(self, status: str, figures: Mapping[str, float]) -> None:
        """The last call. status: done; interrupted, to be gone on with; failed. figures: the run's result, by name."""


class Trackers:
    """Those of a run, by name; each is called until it fails."""

    def __init__(self, trackers: Mapping[str, Tracker]):
        self._trackers = dict(trackers)

    def begin(self, settings: Settings, config: str, step: int) -> None:
        self._call("begin", settings, config, step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._call("scalars", values, step)

    def picture(self, tag: str, picture: Image.Image, step: int) -> None:
        self._call("picture", tag, picture, step)

    def sound(self, tag: str, samples: Tensor, sample_rate: int, step: int, file: Path) -> None:
        self._call("sound", tag, samples, sample_rate, step, file)

    def rewind(self, step: int) -> None:
        self._call("rewind", step)

    def end(self, status: str, figures: Mapping[str, float]) -> None:
        self._call("end", status, figures)

    def _call(self, method: str, *values: object) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                getattr(tracker, method)(*values)
            except Exception as error:  # of a program that we know nothing of, and for which no run may end
                tell_of(name, error)
                del self._trackers[name]


def tell_of(name: str, error: Exception) -> None:
    """Why a tracker is left out, in a line."""
    why = " ".join(f"{type(error).__name__}: {error}".split())
    log.warning("trackers: %s failed and is left out (%s); the run goes on", name, why[:300])
