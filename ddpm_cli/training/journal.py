"""What a run tells while it goes: metrics.jsonl, its trackers, and a progress bar (or plain lines) on stderr."""

import contextlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddpm_cli.errors import WorldError
from ddpm_cli.system.files import write_text
from ddpm_cli.system.memory import peak_bytes
from ddpm_cli.system.progress import progress_bar
from ddpm_cli.training.trackers.base import Trackers
from ddpm_cli.training.trackers.tensorboard import Board

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

    def __init__(
        self, folder: Path, start_step: int, num_steps: int, work: Work | None = None, trackers: Trackers | None = None
    ):
        """trackers: None is TensorBoard alone."""
        self.start_step, self.num_steps, self._work = start_step, num_steps, work
        self._metrics_path = folder / "metrics.jsonl"
        self._open_metrics(start_step)
        self.trackers = trackers or Trackers({"tensorboard": Board(folder / "tensorboard", start_step)})
        self._ended: tuple[str, Mapping[str, float]] = ("failed", {})
        self._bar = progress_bar(total=num_steps, initial=start_step, unit="step", dynamic_ncols=True)
        self._began, self._spoke = time.perf_counter(), -_PLAIN_EVERY

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        with contextlib.suppress(OSError):  # what could not be written was told when it was tried
            self._metrics.close()
        self.trackers.end(*self._ended)

    def ended(self, status: str, figures: Mapping[str, float]) -> None:
        """How the run ended, done or interrupted, and in which figures."""
        self._ended = status, figures

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
        self.trackers.scalars({_TAGS[name]: value for name, value in values.items()}, step)
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
        self.trackers.scalars({_tag_of(name): value for name, value in values.items()}, step)

    def rewind(self, step: int) -> None:
        """Forgets what was written beyond a step that the run went back to."""
        self._metrics.close()
        self._open_metrics(step)
        self.trackers.rewind(step)
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
