"""A signal outside the loops that look for one: imports, the preparing of data, building. It ends the process there,
through every `finally` on the way."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_GRACE = 8.0  # seconds until a process that does not come to its end is ended; queues kill after 10 or more
_TOGETHER = 0.5  # seconds within which a second signal is the first one again, passed on by a launcher
_NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """SIGTERM and SIGUSR1 end the process with 143 and SIGINT with 130, the second signal or _GRACE seconds at once.

    runtime.Signals takes over while a run trains or samples.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopper = _Stopper()
    previous = {number: signal.signal(number, stopper) for number in _NUMBERS}
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
        code = 130 if number == signal.SIGINT else 143
        if self.timer is not None:
            if time.monotonic() - self.since > _TOGETHER:
                os._exit(code)
            return
        self.since = time.monotonic()
        # What is raised here may be swallowed by whatever is being imported; the process must end all the same.
        self.timer = threading.Timer(_GRACE, os._exit, (code,))
        self.timer.daemon = True
        self.timer.start()
        print("interrupted", file=sys.stderr)
        raise SystemExit(code)

    def cancel(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
