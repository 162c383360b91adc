"""How an error reaches the user: a line on stderr, an exit code, and the whole of it in the run's log."""

import contextlib
import errno
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from ddpm_cli.errors import UserError, WorldError

BUG, USER, WORLD, INTERRUPTED = 1, 2, 3, 130
TRACEBACK = "DDPM_CLITRACEBACK"  # the user's HYDRA_FULL_ERROR, which we set for our own ends; workers inherit both
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE}


class JobFailed(Exception):
    """A job of a sweep failed; it has told why, and the sweep tells at its end that it did."""


def report(error: BaseException, command: str) -> int:
    """Tell the error on stderr, in three lines at most (a bug: with its traceback); the exit code it calls for."""
    code = _code(error)
    if code == BUG or os.environ.get(TRACEBACK) == "1":
        traceback.print_exception(error)
    if code != BUG:
        print(f"error: {text_of(error, command)}", file=sys.stderr)
    sys.stderr.flush()
    return code


def _code(error: BaseException) -> int:
    if isinstance(error, UserError):
        return USER
    if isinstance(error, WorldError | JobFailed | MemoryError) or _is_out_of_memory(error):
        return WORLD
    return WORLD if isinstance(error, OSError) and error.errno in _NO_ROOM | _NO_RIGHT else BUG


def _is_out_of_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError"  # torch's, known without importing torch


def text_of(error: BaseException, command: str) -> str:
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        smaller = "training.micro_batch_size or model.channels" if command == "train" else "batch_size"
        reason = (str(error).splitlines() or ["no memory left"])[0].split(". ")[0]
        return f"out of memory: {reason}; try a smaller {smaller}"
    if isinstance(error, JobFailed):
        return f"a job of the sweep failed: {str(error).splitlines()[0]}"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "\n".join(lines[:3]) or type(error).__name__


def write_to_log(error: BaseException) -> None:
    """The error with its traceback, into the run's log file alone."""
    info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("ddpm_cli", logging.ERROR, __file__, 0, "%s", (error,), info)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            with contextlib.suppress(OSError):
                handler.handle(record)


class _Stderr:
    """stderr without Hydra's line on a failed job, which has told its error itself."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return len(text) if text.startswith("Error executing job with overrides") else self._stream.write(text)


@contextlib.contextmanager
def without_hydras_word_on_failed_jobs() -> Iterator[None]:
    with contextlib.redirect_stderr(_Stderr(sys.stderr)):
        yield
