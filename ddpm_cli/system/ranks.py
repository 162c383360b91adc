"""Ranks: processes that work beside this one. Where they meet, how this one starts them, how they end.

Those that torchrun or srun started meet where these say; those of devices=N are started by torch.multiprocessing, as
torchrun's launcher starts functions. (Its agent is not used: it kills what has not ended 30 seconds after a signal, and
a large checkpoint may take longer.)
"""

import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import resource_tracker
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ddpm_cli.errors import WorldError
from ddpm_cli.system.launch_env import Place
from ddpm_cli.system.signals import Signals, blocked

Work = Callable[[Place, dist.Store], None]

_MEETING = timedelta(minutes=10)  # from the first rank of a launcher to the last
_LEFT_ALONE = 75  # exit code of a rank that RankGone ended
_PATIENCE = timedelta(days=7)  # the first rank may have a data set to prepare; a death is noticed otherwise


class RankGone(WorldError):
    """Another rank is gone, without which this one cannot go on: whoever that is has said why."""


def launchers_store(place: Place) -> dist.Store:
    """Where ranks that a launcher started meet."""
    try:
        store = _meeting(place)
    except dist.DistError as error:
        told = f"the {place.world} ranks that {place.launcher} started did not meet within {_MEETING.seconds // 60} min"
        raise WorldError(told) from error
    store.set_timeout(_PATIENCE)
    # torchrun's store outlives the ranks that it starts again, and what the ones before wrote into it.
    return dist.PrefixStore(f"ddpm/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _meeting(place: Place) -> dist.Store:
    if place.launcher == "srun":
        # srun names no port: one that all ranks of this step work out, and steps beside it do not.
        job, step = (int(os.environ.get(f"SLURM_{key}_ID", "0")) for key in ("JOB", "STEP"))
        host = os.environ.get("MASTER_ADDR") or first_node(os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1"))
        port = int(os.environ.get("MASTER_PORT") or 20000 + (31 * job + step) % 20000)
        return dist.TCPStore(host, port, place.world, place.rank == 0, _MEETING, multi_tenant=True)
    return next(dist.rendezvous("env://", place.rank, place.world, timeout=_MEETING))[0]


def first_node(nodes: str) -> str:
    """The first name of SLURM's `gpu[03-05,9],login`: where rank 0 is."""
    name = re.match(r"([^\[,]*)(?:\[(\d+))?", nodes)
    return f"{name[1]}{name[2] or ''}" if name else nodes


def device_of(place: Place, device: str) -> str:
    """A rank's own device: of `cuda`, the GPU of its number on its machine."""
    if device != "cuda":
        return device
    own = f"cuda:{place.local % max(1, torch.cuda.device_count())}"
    torch.cuda.set_device(own)
    return own


class Children:
    """Ranks 1 to count - 1, processes started by this one that do `work` (importable, or a partial of what is).

    They share its processors, get no signals before they want them, and end when it does. `store` is where all meet.
    """

    def __init__(self, work: Work, count: int):
        listener = socket.create_server(("127.0.0.1", 0))  # torch's own would listen to the network
        port = listener.getsockname()[1]
        self.store = dist.TCPStore(
            "127.0.0.1", port, count, True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        threads = max(1, torch.get_num_threads() // count)
        torch.set_num_threads(threads)  # until the end of the shared_by that is around it (system/threads.py)
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if sys.platform != "win32":
            # What multiprocessing starts before its first child, and lets SIGINT and SIGTERM through again thereafter.
            resource_tracker.ensure_running()
        with blocked():  # until they ignore them
            self._context = mp.start_processes(
                _beside, (work, count, port, threads), nprocs=count - 1, join=False, start_method="spawn"
            )

    def died(self) -> bool:
        """Whether any has ended, other than by doing all it had to."""
        return any(process.exitcode for process in self._context.processes)

    def death(self, seconds: float = 0.0) -> str | None:
        """Which one has died and how, looked for so long; None if none has. Those do not count that ended since another
        was gone: they may be seen before the one that was the first to go."""
        deadline = time.monotonic() + seconds
        while True:
            for rank, process in enumerate(self._context.processes, 1):
                if process.exitcode not in (None, 0, _LEFT_ALONE):
                    return f"rank {rank} died ({self._how(rank, process.exitcode)})"
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.01)

    def end(self, grace: float) -> None:
        """Ends those that have not ended so many seconds from now."""
        deadline = time.monotonic() + grace
        for process in self._context.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()

    def _how(self, rank: int, code: int) -> str:
        """How a child ended: the signal, or what it raised."""
        if code < 0:
            return signal.Signals(-code).name
        key = f"raised/{rank}"
        return self.store.get(key).decode(errors="replace") if self.store.check([key]) else f"exit code {code}"


def _beside(index: int, work: Work, count: int, port: int, threads: int) -> None:
    """What a rank of Children does from its beginning to its end."""
    Signals("ignore").start()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    speak_into(os.devnull)  # what it cannot do is told by the first rank
    store = dist.TCPStore("127.0.0.1", port, count, False)
    store.set_timeout(_PATIENCE)
    rank, code = index + 1, 0
    try:
        work(Place(rank, count, rank, "devices"), store)
    except RankGone:
        code = _LEFT_ALONE
    except Exception as error:
        store.set(f"raised/{rank}", f"{type(error).__name__}: {error}".splitlines()[-1][:160])
        code = 1
    os._exit(code)  # nothing is worth a wait for threads


def speak_into(path: Path | str) -> None:
    """From here on whatever this process says goes into a file."""
    with open(path, "a", encoding="utf-8") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
