"""Commands in children forked from one process that has imported everything, so that a trial costs no import."""

import contextlib
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Hook = Callable[[], None]


def warm_up() -> None:
    """Imports what the commands import. One thread before any work: a child of OpenMP's threads may hang."""
    import torch

    torch.set_num_threads(1)
    import torch._dynamo  # seconds, at the first optimiser
    import torch.utils.flop_counter
    import torch.utils.tensorboard

    import ddpm_cli.data.digits
    import ddpm_cli.data.image_folder
    import ddpm_cli.data.shapes
    import ddpm_cli.models.cnn
    import ddpm_cli.models.unet
    import ddpm_cli.sample
    import ddpm_cli.sampling.run
    import ddpm_cli.train
    import ddpm_cli.training_run.run  # noqa: F401

    logging.getLogger("ddpm_cli").addHandler(logging.NullHandler())  # the parent's own; Hydra gives the children theirs
    with torch.device("meta"):
        torch.nn.Embedding(2, 2)


@dataclass
class Ended:
    """How a child came to its end; code -9 is SIGKILL, None a child that had to be killed for taking too long."""

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def told(self) -> list[str]:
        """What the user is told at the end: the lines from `error: ` on."""
        lines = self.err.splitlines()
        first = next((i for i, line in enumerate(lines) if line.startswith("error: ")), None)
        return [] if first is None else [line for line in lines[first:] if line.strip()]


class Child:
    """A forked child, the leader of a process group of its own, with its output in files."""

    def __init__(self, body: Callable[[], int], place: Path):
        place.mkdir(parents=True, exist_ok=True)
        self.out, self.err = place / "child.out", place / "child.err"
        self.began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(body, place)
        with contextlib.suppress(OSError):  # it has done so itself already, and may be gone
            os.setpgid(self.pid, self.pid)

    def _run(self, body: Callable[[], int], place: Path) -> None:
        code = 1
        try:
            os.setpgid(0, 0)
            os.chdir(place)
            for number, path in ((1, self.out), (2, self.err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            code = body()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def kill(self, number: int = signal.SIGKILL, *, group: bool = False) -> None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def wait(self, timeout: float = 120.0) -> Ended:
        deadline = time.monotonic() + timeout
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        while not pid and time.monotonic() < deadline:
            time.sleep(0.005)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        late = not pid
        if late:
            self.kill()
            _, status = os.waitpid(self.pid, 0)
        code = None if late else os.waitstatus_to_exitcode(status)
        read = [path.read_text(errors="replace") if path.exists() else "" for path in (self.out, self.err)]
        return Ended(code, *read, time.monotonic() - self.began)

    def group_is_empty(self) -> bool:
        """Whether no process of its group is left."""
        try:
            os.killpg(self.pid, 0)
        except (ProcessLookupError, PermissionError):
            return True
        return False


def start(command: str, args: Sequence[object], place: Path, hook: Hook | None = None) -> Child:
    """ddpm-train or ddpm-sample in a child; `hook` is called in it first, to put a fault in."""

    def body() -> int:
        from ddpm_cli import sample, train

        if hook:
            hook()
        sys.argv = [f"ddpm-{command}", *map(str, args)]
        try:
            {"train": train, "sample": sample}[command].main()
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        return 0

    return Child(body, place)


def run(command: str, *args: object, place: Path, hook: Hook | None = None, timeout: float = 120.0) -> Ended:
    """The same, to its end."""
    return start(command, args, place, hook).wait(timeout)
