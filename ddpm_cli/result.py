"""What a run leaves of itself in figures: result.json however it ends, a sweep's summary, TensorBoard's HParams."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ddpm_cli.config import Context
from ddpm_cli.errors import WorldError
from ddpm_cli.run_files import RunDir, write_summary

log = logging.getLogger("ddpm_cli")


@contextmanager
def recorded(run: RunDir, context: Context) -> Iterator[dict[str, Any]]:
    """Writes result.json however the run ends, and in a sweep the summary of all jobs so far."""
    result: dict[str, Any] = {"status": "running", "overrides": context.overrides, "metrics": {}}
    started = time.time()
    try:
        yield result
        result["status"] = "done"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code in (129, 130, 143)):
            result["status"] = "interrupted"
        elif result["status"] == "running":
            result.update(status="failed", error=f"{type(error).__name__}: {error}")
        raise
    finally:
        result["seconds"] = round(time.time() - started, 1)
        try:
            run.write_result(result)
            if context.multirun:
                write_summary(run.path.parent)
        except (OSError, WorldError) as error:  # must not hide what ended the run
            log.warning("could not write the result of %s: %s", run.path, error)


def last_metrics(run: RunDir) -> dict[str, float]:
    """The last line of metrics.jsonl, for a run that was already at its end."""
    path = run.path / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return json.loads(lines[-1]) if lines else {}


def hparams(cfg: dict[str, Any], context: Context) -> dict[str, Any]:
    """What runs are compared by in TensorBoard's HParams: in a sweep what its jobs were given, else the choices too."""
    typed = dict(o.lstrip("+").split("=", 1) for o in context.overrides if "=" in o)
    choices = {k: v for k, v in context.choices.items() if v is not None and "/" not in k}
    return typed if context.multirun and typed else {**choices, "seed": cfg["seed"], **typed}
