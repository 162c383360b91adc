"""profile=true: what the processor and the GPU do in a few steps, as a trace to look at and as a table."""

import logging
import os
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from ddpm_cli.errors import WorldError
from ddpm_cli.training.state import TrainState

log = logging.getLogger("ddpm_cli")
_SKIPPED, _WARM, _RECORDED = 10, 2, 5  # steps: compiling and choosing kernels are over, the profiler has begun, these
_ROWS = 30  # of the table


class Profile:
    """Called after each step inside `with`; writes FOLDER/trace.json.gz and FOLDER/operators.txt once.

    What happens between two of these steps (a preview, a checkpoint) is recorded with them. The numbers of the run are
    the same with and without.
    """

    def __init__(self, folder: Path, device: torch.device):
        self._folder, self._written = folder, False
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        self._sort = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it would tell of its own beginning and end
        self._profiler = profile(
            activities=activities,
            schedule=schedule(wait=_SKIPPED, warmup=_WARM, active=_RECORDED, repeat=1),
            on_trace_ready=self._write,
        )

    def __enter__(self) -> "Profile":
        self._profiler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._written:
            self._profiler.stop()
        if not self._written and error is None:
            log.warning("profile=true: nothing was recorded in fewer than %d steps", _SKIPPED + _WARM + 1)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """A measurement without figures."""
        if not self._written:
            self._profiler.step()
        return {}

    def _write(self, profiler: profile) -> None:
        self._written = True
        path = self._folder / "trace.json.gz"
        try:
            self._folder.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(path))
            table = profiler.key_averages().table(sort_by=self._sort, row_limit=_ROWS)
            (self._folder / "operators.txt").write_text(table, encoding="utf-8")
        except (OSError, RuntimeError) as error:
            raise WorldError(f"could not write {path}: {error}") from error
        log.info("profile of %d steps: %s (open it in ui.perfetto.dev)", _RECORDED, path)
