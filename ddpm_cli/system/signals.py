"""What a process does on SIGINT, SIGTERM, SIGUSR1 and SIGHUP: one of four policies, and one exit code for each."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Literal

# 128 + the number; SIGUSR1 (a queue's warning before the end) counts as SIGTERM.
EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 143, "SIGHUP": 129}
_GRACE = 8.0  # seconds until a process that does not come to its end is ended; queues kill after 10 or more
_TOGETHER = 0.5  # seconds within which a second signal is the first one again

Policy = Literal["raise", "flag", "ignore", "default"]


class Signals:
    """A policy, in force from `start` on, or inside `with`, which gives back the one before. True once one has come.

    raise: SystemExit where the process happens to be, through every `finally` on the way: for imports, the preparing
        of data and building, where no loop looks for a flag. A process that swallows it is ended after _GRACE seconds.
    flag: no more than noted, to be looked at between steps, so that what is begun can be finished and saved.
    ignore: for a rank that another process tells how its run ends; also what was blocked when it was started.
    default: the system's own. For a wait outside Python, which none of our handlers would interrupt.

    With raise and flag, a second signal ends the process at once (see _is_impatience).
    """

    def __init__(self, policy: Policy):
        self.policy, self.received = policy, 0
        self._since = 0.0
        self._previous: dict[signal.Signals, object] = {}
        self._timer: threading.Timer | None = None

    def start(self) -> None:
        handler = {"ignore": signal.SIG_IGN, "default": signal.SIG_DFL}.get(self.policy, self._on_signal)
        numbers = _heeded()
        self._previous = {number: signal.signal(number, handler) for number in numbers}
        if self.policy == "ignore":
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # no other may set a handler
            self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._timer is not None:
            self._timer.cancel()

    def __bool__(self) -> bool:
        return bool(self.received)

    @property
    def exit_code(self) -> int:
        """Of a process that ends for the signal that came first."""
        return EXIT_CODES[signal.Signals(self.received or signal.SIGTERM).name]

    def note(self) -> None:
        """One has come to another rank, for which this process is to end as well."""
        self.received = self.received or signal.SIGTERM

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            if _is_impatience(number, time.monotonic() - self._since):
                os._exit(self.exit_code)
            return
        self.received, self._since = number, time.monotonic()
        if self.policy == "flag":
            return
        # What is raised here may be swallowed by whatever is being imported; the process must end all the same.
        self._timer = threading.Timer(_GRACE, os._exit, (self.exit_code,))
        self._timer.daemon = True
        self._timer.start()
        with contextlib.suppress(OSError):  # the terminal is gone
            print("interrupted", file=sys.stderr)
        raise SystemExit(self.exit_code)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Holds the signals back. A process started inside inherits that, and so gets none before it has a policy."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _heeded())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _heeded() -> list[signal.Signals]:
    """The signals that this system has; not SIGHUP where it is ignored, as under nohup."""
    numbers = [signal.Signals[name] for name in EXIT_CODES if hasattr(signal, name)]
    return [n for n in numbers if n.name != "SIGHUP" or signal.getsignal(n) is not signal.SIG_IGN]


def _is_impatience(number: int, seconds: float) -> bool:
    """Whether a further signal, so long after the first, asks for the end at once. One that comes with the first does
    not: launchers pass on what the whole process group has got already. Nor does SIGHUP: the shell and the system both
    send it when a terminal goes."""
    return seconds > _TOGETHER and signal.Signals(number).name != "SIGHUP"
