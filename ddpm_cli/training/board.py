"""TensorBoard's files. They are for looking at: when they cannot be written, the run goes on without them."""

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

log = logging.getLogger("ddpm_cli")


class Board:
    """Open at `start_step` (0, or the step a run is resumed at): points beyond it that a crash left are purged."""

    def __init__(self, folder: Path, start_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        self._writer: Any = None
        self._excepthook = threading.excepthook
        threading.excepthook = self._on_thread_error
        try:
            self._writer = SummaryWriter(str(folder), purge_step=start_step + 1)
        except OSError as error:
            self._give_up(error)

    def scalar(self, tag: str, value: float, step: int) -> None:
        self._write("add_scalar", tag, value, step)

    def picture(self, tag: str, picture: Image.Image, step: int) -> None:
        pixels = np.asarray(picture.convert("RGB"))
        self._write("add_image", tag, pixels, step, dataformats="HWC")

    def text(self, tag: str, text: str, step: int) -> None:
        self._write("add_text", tag, text, step)

    def hparams(self, values: dict[str, Any], metrics: dict[str, float]) -> None:
        self._write("add_hparams", values, metrics, run_name=".")

    def close(self) -> None:
        self._write("close")
        self._writer = None
        if threading.excepthook == self._on_thread_error:
            threading.excepthook = self._excepthook

    def _write(self, method: str, *values: Any, **more: Any) -> None:
        if self._writer is None:
            return
        try:
            getattr(self._writer, method)(*values, **more)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.warning("TensorBoard's files in %s cannot be written (%s): going on without", self.folder, error)
        self._writer = None

    def _on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        """The writer's thread passes its error on to us, so its traceback need not be printed as well."""
        if type(args.thread).__name__ != "_AsyncWriterThread":
            self._excepthook(args)
