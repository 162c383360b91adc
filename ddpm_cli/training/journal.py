"""What a run tells while it goes: metrics.jsonl, TensorBoard, and a progress bar (or plain lines) on stderr."""

import contextlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from ddpm_cli.errors import WorldError
from ddpm_cli.training.board import Board

log = logging.getLogger("ddpm_cli")

_TAGS = {
    "loss": "train/loss",
    "vb": "train/bound_term",
    "lr": "train/lr",
    "grad_norm": "train/grad_norm",
    "images_per_second": "perf/images_per_second",
    "gpu_memory_gib": "perf/gpu_memory_gib",
    "loss_q1": "loss_by_t/1_least_noise",
    "loss_q2": "loss_by_t/2",
    "loss_q3": "loss_by_t/3",
    "loss_q4": "loss_by_t/4_most_noise",
}
_PLAIN_EVERY = 10.0  # seconds between lines without a terminal


class Journal:
    """Open from `start_step` (0, or the step a run is resumed at; what was written beyond it is dropped) to
    num_steps."""

    def __init__(self, folder: Path, start_step: int, num_steps: int):
        self.start_step, self.num_steps = start_step, num_steps
        self._metrics_path = folder / "metrics.jsonl"
        self._open_metrics(start_step)
        self.board = Board(folder / "tensorboard", start_step)
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=num_steps, initial=start_step, unit="step", disable=not self._terminal, dynamic_ncols=True, leave=True
        )
        self._began, self._spoke = time.perf_counter(), -_PLAIN_EVERY

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        with contextlib.suppress(OSError):  # what could not be written was told when it was tried
            self._metrics.close()
        self.board.close()

    def tick(self) -> None:
        """One step is made."""
        self._bar.update()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """One log step: a line of metrics.jsonl, scalars, and what the person at the terminal sees."""
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            values["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self._write({"step": step, **values})
        for name, value in values.items():
            self.board.scalar(_TAGS[name], value, step)
        speed = values["images_per_second"]
        self._bar.set_postfix_str(f"loss {values['loss']:.4f}, {speed:,.0f} images/s")
        now = time.perf_counter()
        if not self._terminal and (now - self._spoke > _PLAIN_EVERY or step == self.num_steps):
            left = (now - self._began) / max(step - self.start_step, 1) * (self.num_steps - step)
            log.info(
                "step %d/%d  loss %.4f  %.0f images/s  %s left",
                step,
                self.num_steps,
                values["loss"],
                speed,
                _clock(left),
            )
            self._spoke = now

    def picture(self, tag: str, picture: Image.Image, step: int) -> None:
        """An image tab of TensorBoard."""
        self.board.picture(tag, picture, step)

    def text(self, tag: str, text: str) -> None:
        self.board.text(tag, text, self.start_step)

    def hparams(self, values: dict[str, Any], metrics: dict[str, float]) -> None:
        """Shows the run in TensorBoard's HParams table (run_name '.' keeps it in this run's folder)."""
        plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in values.items()}
        self.board.hparams(plain, metrics)

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
        temporary = self._metrics_path.with_name(".metrics.jsonl.tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self._metrics_path)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
