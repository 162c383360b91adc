"""A signal outside the loops that look for one: imports, the preparing of data, building. It ends the process there,
through every `finally` on the way."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_GRACE = 8.0  # seconds until a process that does not come to its end is ended; queues kill after 10 or more
_TOGETHER = 0.5  # seconds within which a second signal is the first one again
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")


def ending_signals() -> list[signal.Signals]:
    """The signals that end a command; not SIGHUP where it is ignored, as under nohup."""
    numbers = [signal.Signals[name] for name in _NAMES if hasattr(signal, name)]
    return [n for n in numbers if n.name != "SIGHUP" or signal.getsignal(n) is not signal.SIG_IGN]


def exit_code_of(number: int) -> int:
    """128 + the signal; SIGUSR1 (a queue's warning before the end) counts as SIGTERM."""
    return {"SIGINT": 130, "SIGHUP": 129}.get(signal.Signals(number).name, 143)


def is_impatience(number: int, seconds: float) -> bool:
    """Whether a further signal, so long after the first, asks for the end at once. One that comes with the first does
    not: launchers pass on what the whole process group has got already. Nor does SIGHUP: the shell and the system both
    send it when a terminal goes."""
    return seconds > _TOGETHER and signal.Signals(number).name != "SIGHUP"


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """SIGTERM and SIGUSR1 end the process with 143, SIGINT with 130 and SIGHUP with 129; a second signal or _GRACE
    seconds at once.

    runtime.Signals takes over while a run trains or samples.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopper = _Stopper()
    previous = {number: signal.signal(number, stopper) for number in ending_signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        stopper.cancel()


class _Stopper:
    """The signal handler."""

    def __init__(self) -> None:
        self.timer: threading.Timer | None = None
        self.since = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        code = exit_code_of(number)
        if self.timer is not None:
            if is_impatience(number, time.monotonic() - self.since):
                os._exit(code)
            return
        self.since = time.monotonic()
        # What is raised here may be swallowed by whatever is being imported; the process must end all the same.
        self.timer = threading.Timer(_GRACE, os._exit, (code,))
        self.timer.daemon = True
        self.timer.start()
        with suppress(OSError):  # the terminal is gone
            print("interrupted", file=sys.stderr)
        raise SystemExit(code)

    def cancel(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
