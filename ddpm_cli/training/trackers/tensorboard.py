"""TensorBoard's files, in a run's folder."""

import logging
import re
import threading
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ddpm_cli.training.trackers.base import Settings, Tracker

log = logging.getLogger("ddpm_cli")

_CHARTS = {  # of the page Custom Scalars, by title: the tags, as a regular expression, that are drawn together
    "v error on fixed images and noise": r"curves/v_error_.*",
    "v error by log-SNR, training images": r"v_error_by_log_snr/train_.*",
    "v error by log-SNR, held-out images": r"v_error_by_log_snr/heldout_.*",
    "sigma's place between beta tilde (0) and beta (1)": r"sigma_by_log_snr/.*",
}


class Board(Tracker):
    """TensorBoard's files from `start_step` on; points beyond it that a crash left are purged. They are for looking at:
    when they cannot be written, the run goes on without them."""

    def __init__(self, folder: Path, start_step: int):
        self.folder, self._drawn = folder, set[str]()
        self._writer: Any = None
        self._excepthook = threading.excepthook
        self._open(start_step)

    def _open(self, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        threading.excepthook = self._on_thread_error
        try:
            self._writer = SummaryWriter(str(self.folder), purge_step=start_step + 1)
        except OSError as error:
            self._give_up(error)

    def begin(self, settings: Settings, config: str, step: int) -> None:
        self._hparams(settings)
        self._write("add_text", "config", f"```yaml\n{config}\n```", step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self._write("add_scalar", tag, value, step)
        self._charts(
            {tag for tag in values if tag.startswith("eval/") or any(re.match(c, tag) for c in _CHARTS.values())}
        )

    def _charts(self, tags: set[str]) -> None:
        """Draws together, on the page Custom Scalars, those of these and of earlier tags that belong together: curves
        over the noise level, figures with their intervals."""
        if self._drawn.issuperset(tags):
            return
        self._drawn |= tags
        drawn = {
            title: ["Multiline", [tag]] for title, tag in _CHARTS.items() if any(re.match(tag, t) for t in self._drawn)
        }
        figures = [tag.removeprefix("eval/") for tag in sorted(self._drawn) if tag.startswith("eval/")]
        margins = {
            f: ["Margin", [f"eval/{f}", *(f"eval_interval/{f}_{end}" for end in ("low", "high"))]] for f in figures
        }
        layout = {"training": drawn, "evaluation, with 95 % intervals": margins}
        self._write("add_custom_scalars", {title: charts for title, charts in layout.items() if charts})

    def picture(self, tag: str, picture: Image.Image, step: int) -> None:
        pixels = np.asarray(picture.convert("RGB"))
        self._write("add_image", tag, pixels, step, dataformats="HWC")

    def sound(self, tag: str, samples: Tensor, sample_rate: int, step: int, file: Path) -> None:
        self._write("add_audio", tag, samples[None].float() / 32768, step, sample_rate=sample_rate)

    def rewind(self, step: int) -> None:
        self._close()
        self._open(step)

    def end(self, status: str, figures: Mapping[str, float]) -> None:
        self._close()

    def _hparams(self, values: Settings) -> None:
        """What HParams compares runs by; its metrics are the run's scalars, each at its last step.

        add_hparams would also write which settings and metrics an experiment has: TensorBoard takes that of the first
        run it finds for all, so that what another sweep varies has no column.
        """
        from torch.utils.tensorboard.summary import hparams

        _, started, _ = hparams(dict(values), {})
        self._write("file_writer.add_summary", started)

    def _close(self) -> None:
        self._write("close")
        self._writer = None
        if threading.excepthook == self._on_thread_error:
            threading.excepthook = self._excepthook

    def _write(self, method: str, *values: Any, **more: Any) -> None:
        if self._writer is None:
            return
        try:
            attrgetter(method)(self._writer)(*values, **more)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.warning("TensorBoard's files in %s cannot be written (%s): going on without", self.folder, error)
        self._writer = None

    def _on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        """The writer's thread passes its error on to us, so its traceback need not be printed as well."""
        if type(args.thread).__name__ != "_AsyncWriterThread":
            self._excepthook(args)
