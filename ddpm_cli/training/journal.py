"""What a run tells while it goes: metrics.jsonl, TensorBoard, and a progress bar (or plain lines) on stderr."""

import contextlib
import json
import logging
import re
import threading
import time
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_cli.errors import WorldError
from ddpm_cli.system.files import write_text
from ddpm_cli.system.memory import peak_bytes
from ddpm_cli.system.progress import progress_bar

log = logging.getLogger("ddpm_cli")

# TensorBoard shows groups of tags in alphabetical order, and the loss must be the first thing seen.
_TAGS = {
    "loss": "curves/loss",
    "vb": "curves/loss_bound_term",
    "lr": "optimiser/lr",
    "grad_norm": "optimiser/grad_norm",
    "noise_scale": "optimiser/gradient_noise_scale",
    "images_per_second": "perf/images_per_second",
    "tflops": "perf/tflops_of_a_device",
    "mfu": "perf/model_flops_utilisation",
    "memory_gib": "perf/peak_memory_gib",
    "gpu_memory_gib": "perf/peak_gpu_memory_gib",
}
_CHARTS = {  # of the page Custom Scalars, by title: the tags, as a regular expression, that are drawn together
    "v error on fixed images and noise": r"curves/v_error_.*",
    "v error by log-SNR, training images": r"v_error_by_log_snr/train_.*",
    "v error by log-SNR, held-out images": r"v_error_by_log_snr/heldout_.*",
    "sigma's place between beta tilde (0) and beta (1)": r"sigma_by_log_snr/.*",
}
_PLAIN_EVERY = 10.0  # seconds between lines without a terminal


class NoJournal:
    """What the loop tells of itself; here to nobody, as on the ranks beside the first."""

    def tick(self) -> None:
        """One step is made."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """What a log step is about."""

    def measured(self, step: int, values: dict[str, float]) -> None:
        """What is measured beside the steps."""

    def rewind(self, step: int) -> None:
        """The run went back to `step`."""


@dataclass(frozen=True)
class Work:
    """What a device computes of an image, in TFLOP (by the network's formulas, whatever is recomputed), and what it
    could in a second, where that is known: their ratio is the model FLOPs utilisation (Chowdhery et al. 2022,
    Appendix B)."""

    tflop_per_image: float
    peak_tflops: float | None = None


class Journal(NoJournal):
    """Open from `start_step` (0, or the step a run is resumed at; what was written beyond it is dropped) to
    num_steps."""

    def __init__(self, folder: Path, start_step: int, num_steps: int, work: Work | None = None):
        self.start_step, self.num_steps, self._work = start_step, num_steps, work
        self._metrics_path = folder / "metrics.jsonl"
        self._open_metrics(start_step)
        self.board = Board(folder / "tensorboard", start_step)
        self._bar = progress_bar(total=num_steps, initial=start_step, unit="step", dynamic_ncols=True)
        self._began, self._spoke = time.perf_counter(), -_PLAIN_EVERY

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        with contextlib.suppress(OSError):  # what could not be written was told when it was tried
            self._metrics.close()
        self.board.close()

    def tick(self) -> None:
        self._bar.update()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """One log step: a line of metrics.jsonl, scalars, and what the person at the terminal sees."""
        values = {**values, "memory_gib": peak_bytes() / 2**30}  # a copy: checkpoints hold what a resumed run has too
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            values["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if self._work is not None:
            values["tflops"] = values["images_per_second"] * self._work.tflop_per_image
            if self._work.peak_tflops is not None:
                values["mfu"] = values["tflops"] / self._work.peak_tflops
        self._write({"step": step, **values})
        for name, value in values.items():
            self.board.scalar(_TAGS[name], value, step)
        speed = values["images_per_second"]
        self._bar.set_postfix_str(f"loss {values['loss']:.4f}, {speed:,.0f} images/s")
        now = time.perf_counter()
        if self._bar.disable and (now - self._spoke > _PLAIN_EVERY or step == self.num_steps):
            left = (now - self._began) / max(step - self.start_step, 1) * (self.num_steps - step)
            told = (step, self.num_steps, values["loss"], speed, _clock(left))
            log.info("step %d/%d  loss %.4f  %.0f images/s  %s left", *told)
            self._spoke = now

    def measured(self, step: int, values: dict[str, float]) -> None:
        """What is measured beside the steps, such as v_error_train or fid with its interval's ends fid_low and
        fid_high: a line of metrics.jsonl of its own, and scalars."""
        if not values:
            return
        self._write({"step": step, **{_key_of(name): value for name, value in values.items()}})
        tags = {_tag_of(name): value for name, value in values.items()}
        for tag, value in tags.items():
            self.board.scalar(tag, value, step)
        self.board.charts(list(tags))

    def rewind(self, step: int) -> None:
        """Forgets what was written beyond a step that the run went back to."""
        self._metrics.close()
        self._open_metrics(step)
        self.board.close()
        self.board = Board(self.board.folder, step)
        self._bar.n = step
        self._bar.refresh()

    def _open_metrics(self, step: int) -> None:
        try:
            self._drop_after(step)
            self._metrics = open(self._metrics_path, "a", encoding="utf-8")  # noqa: SIM115 closed in __exit__
        except OSError as error:
            raise WorldError(f"could not write {self._metrics_path}: {error.strerror}") from error

    def _write(self, values: dict[str, Any]) -> None:
        try:
            self._metrics.write(json.dumps(values) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise WorldError(f"could not write {self._metrics_path}: {error.strerror}; make room and resume") from error

    def _drop_after(self, step: int) -> None:
        """Lines beyond the resumed step come again; a torn last line is dropped with them."""
        if not self._metrics_path.exists():
            return
        lines = self._metrics_path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        write_text(self._metrics_path, "".join(line + "\n" for line in kept))


class Board:
    """TensorBoard's files from `start_step` on; points beyond it that a crash left are purged. They are for looking at:
    when they cannot be written, the run goes on without them."""

    def __init__(self, folder: Path, start_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self._tags = folder, set[str]()
        self._writer: Any = None
        self._excepthook = threading.excepthook
        threading.excepthook = self._on_thread_error
        try:
            self._writer = SummaryWriter(str(folder), purge_step=start_step + 1)
        except OSError as error:
            self._give_up(error)

    def scalar(self, tag: str, value: float, step: int) -> None:
        self._write("add_scalar", tag, value, step)

    def charts(self, tags: list[str]) -> None:
        """Draws together, on the page Custom Scalars, those of these and of earlier tags that belong together: curves
        over the noise level, figures with their intervals."""
        if self._tags.issuperset(tags):
            return
        self._tags.update(tags)
        drawn = {
            title: ["Multiline", [tag]] for title, tag in _CHARTS.items() if any(re.match(tag, t) for t in self._tags)
        }
        figures = [tag.removeprefix("eval/") for tag in sorted(self._tags) if tag.startswith("eval/")]
        margins = {f: ["Margin", [_tag_of(f), _tag_of(f"{f}_low"), _tag_of(f"{f}_high")]] for f in figures}
        layout = {"training": drawn, "evaluation, with 95 % intervals": margins}
        self._write("add_custom_scalars", {title: charts for title, charts in layout.items() if charts})

    def picture(self, tag: str, picture: Image.Image, step: int) -> None:
        pixels = np.asarray(picture.convert("RGB"))
        self._write("add_image", tag, pixels, step, dataformats="HWC")

    def sound(self, tag: str, samples: Tensor, sample_rate: int, step: int) -> None:
        """samples: (L,) int16."""
        self._write("add_audio", tag, samples[None].float() / 32768, step, sample_rate=sample_rate)

    def text(self, tag: str, text: str, step: int) -> None:
        self._write("add_text", tag, text, step)

    def hparams(self, values: dict[str, bool | float | str]) -> None:
        """What HParams compares runs by; its metrics are the run's scalars, each at its last step.

        add_hparams would also write which settings and metrics an experiment has: TensorBoard takes that of the first
        run it finds for all, so that what another sweep varies has no column.
        """
        from torch.utils.tensorboard.summary import hparams

        _, started, _ = hparams(values, {})
        self._write("file_writer.add_summary", started)

    def close(self) -> None:
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


def _key_of(name: str) -> str:
    """A measured figure's name in metrics.jsonl."""
    return name if name.startswith(("v_error_", "sigma_")) else f"eval/{name}"


def _tag_of(name: str) -> str:
    """A measured figure's name in TensorBoard."""
    key, _, level = name.partition("_at_")
    if not level and name.endswith(
        ("_low", "_high")
    ):  # apart from the figures, of which there would be three cards each
        return f"eval_interval/{name}"
    if not level:
        return f"curves/{name}" if key.startswith("v_error_") else _key_of(name)
    group, split = ("v_error", f"{key.removeprefix('v_error_')}_") if key.startswith("v_error_") else (key, "")
    return f"{group}_by_log_snr/{split}{level}"


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
