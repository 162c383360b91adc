"""How an error reaches the user: a line on stderr, an exit code, and the whole of it in the run's log."""

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.system.memory import is_out_of_memory, out_of_memory
from ddpm_cli.system.signals import EXIT_CODES

BUG, USER, WORLD, INTERRUPTED = 1, 2, 3, EXIT_CODES["SIGINT"]
TRACEBACK = "DDPM_CLI_TRACEBACK"  # the user's HYDRA_FULL_ERROR, which we set for our own ends; workers inherit both
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE}


class JobFailed(Exception):
    """A job of a sweep failed; it has told why, and the sweep tells at its end that it did."""


def report(error: BaseException, command: str, *, quiet: bool = False) -> int:
    """Tell the error on stderr, in three lines at most (a bug: with its traceback); the exit code it calls for.

    quiet: of several processes that found the same another one tells; a bug is told all the same.
    """
    code = _code(error)
    if quiet and code != BUG:
        return code
    if code == BUG or os.environ.get(TRACEBACK) == "1":
        traceback.print_exception(error)
    if code != BUG:
        print(f"error: {text_of(error, command)}", file=sys.stderr)
    sys.stderr.flush()
    return code


def _code(error: BaseException) -> int:
    if isinstance(error, UserError):
        return USER
    if isinstance(error, WorldError | JobFailed) or is_out_of_memory(error):
        return WORLD
    return WORLD if isinstance(error, OSError) and error.errno in _NO_ROOM | _NO_RIGHT else BUG


def text_of(error: BaseException, command: str) -> str:
    if is_out_of_memory(error):
        smaller = "training.micro_batch_size or model.channels" if command == "train" else "batch_size"
        return str(out_of_memory("", f"try a smaller {smaller}", error))
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "\n".join(lines[:3]) or type(error).__name__


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
