"""result.json: how a run or a job ended, and in which figures."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpm_cli.config.context import Context
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.run_dir.find import checkpoints
from ddpm_cli.system.files import write_text
from ddpm_cli.system.signals import EXIT_CODES

log = logging.getLogger("ddpm_cli")


@contextmanager
def recorded(folder: Path, context: Context) -> Iterator[dict[str, Any]]:
    """Keeps the folder's result.json: that it runs, then how it ended. `metrics` and `step` are the body's to set."""
    result = _begun(context)
    _write(folder, result)  # what an earlier run in this folder came to is no more
    try:
        yield result
        result["status"] = "done"
    except BaseException as error:
        result.update(_ending(error))
        raise
    finally:
        _write(folder, result)


@contextmanager
def job_recorded(folder: Path, context: Context) -> Iterator[None]:
    """The same for a job of a sweep whose body records nothing, most of all because it was refused before it began; a
    run that was there already keeps its own."""
    result = _begun(context)
    try:
        yield
        result["status"] = "done"
    except BaseException as error:
        result.update(_ending(error))
        raise
    finally:
        if not _has_begun(folder, result["started"]) and not checkpoints(folder):
            _write(folder, result)


def _begun(context: Context) -> dict[str, Any]:
    return {"status": "running", "overrides": context.overrides, "metrics": {}, "started": time.time()}


def _ending(error: BaseException) -> dict[str, Any]:
    by_signal = isinstance(error, SystemExit) and error.code in EXIT_CODES.values()
    if by_signal or isinstance(error, KeyboardInterrupt):
        return {"status": "interrupted"}
    told = f"{error}" if isinstance(error, UserError | WorldError) else f"{type(error).__name__}: {error}"
    return {"status": "refused" if isinstance(error, UserError) else "failed", "error": told}


def _has_begun(folder: Path, since: float) -> bool:
    try:
        return float(json.loads((folder / "result.json").read_text(encoding="utf-8"))["started"]) >= since
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(folder: Path, result: dict[str, Any]) -> None:
    result["seconds"] = round(time.time() - result["started"], 1)
    try:
        write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")
    except OSError as error:  # must not hide what ended the run
        log.warning("could not write the result of %s: %s", folder, error)
