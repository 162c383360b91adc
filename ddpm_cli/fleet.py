"""The ranks of a run as processes: started beside this one or found where a launcher started them, watched, ended."""

import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
import yaml

from ddpm_cli.argv import Place
from ddpm_cli.config import Context
from ddpm_cli.ending import ending_signals
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.plan import Machine
from ddpm_cli.run_dir import checkpoints
from ddpm_cli.runtime import Signals
from ddpm_cli.training.ranks import SINGLE, Group, Single

log = logging.getLogger("ddpm_cli")
PLAN, READY, FINGERPRINT, FAILED = "plan", "ready", "fingerprint", "failed"  # keys of the store
_GRACE = 5.0  # seconds: for a rank to end when told so, and for this process to see that one has died


def check_launched(place: Place | None, cfg: dict[str, Any], context: Context) -> None:
    """UserError for what does not go with ranks that a launcher started."""
    if place is None:
        return
    if context.multirun:
        raise UserError(f"-m does not go with ranks started by {place.launcher}; leave it out, or use devices=N")
    if "devices" in context.typed_keys and cfg["devices"] not in (1, "auto", place.world):
        found = f"{place.launcher} started {place.world} ranks"
        raise UserError(f"devices={cfg['devices']}: {found}; leave devices out")
    if ":" in cfg["device"]:
        raise UserError(f"device={cfg['device']} is one device, and {place.launcher} started {place.world} ranks")
    if place.world > cfg["training"]["batch_size"]:
        size = cfg["training"]["batch_size"]
        raise UserError(f"{place.launcher} started {place.world} ranks, more than training.batch_size={size}")


def launchers_store(place: Place) -> dist.Store:
    """Where ranks that a launcher started meet."""
    if place.launcher == "srun":
        job, step = (int(os.environ.get(f"SLURM_{key}_ID", "0")) for key in ("JOB", "STEP"))
        os.environ.setdefault("MASTER_ADDR", first_node(os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1")))
        os.environ.setdefault("MASTER_PORT", str(20000 + (31 * job + step) % 20000))
    store, _, _ = next(dist.rendezvous("env://", place.rank, place.world, timeout=timedelta(minutes=10)))
    store.set_timeout(timedelta(days=7))  # rank 0 may have a data set to prepare
    return dist.PrefixStore("ddpm", store)


def first_node(nodes: str) -> str:
    """The first name of SLURM's `gpu[03-05,9],login`: where rank 0 is."""
    name = re.match(r"([^\[,]*)(?:\[(\d+))?", nodes)
    return f"{name[1]}{name[2] or ''}" if name else nodes


class Fleet:
    """Rank 0's view of the others. Leaving it ends them, however the run ended."""

    def __init__(self, place: Place | None):
        self.place, self.count = place, place.world if place else 1
        self.group: Group | None = None
        self._store: dist.Store | None = launchers_store(place) if place else None
        self._children: list[tuple[subprocess.Popen, IO[bytes]]] = []
        self._threads, self._run, self._left = torch.get_num_threads(), Path(), threading.Event()

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        healthy = self.group is not None and not self.group.broken
        if healthy and self.group is not None:
            with contextlib.suppress(WorldError):
                self.group.stop()
        self._left.set()
        if self.place is not None and self._store is not None and self.group is None:
            self._store.set(PLAN, json.dumps({"failed": 2 if isinstance(error, UserError) else 3}))
        self._end_children(_GRACE if healthy else 0.0)
        if dist.is_initialized() and (healthy or not torch.cuda.is_initialized()):
            dist.destroy_process_group()
        torch.set_num_threads(self._threads)

    def start(self, count: int, run: Path) -> None:
        """Starts count - 1 ranks on this machine, unless a launcher did. They wait for the plan."""
        self._run = run
        if self.place is not None or count == 1:
            return
        self.count = count
        listener = socket.create_server(("127.0.0.1", 0))  # torch's own would listen to the network
        port = listener.getsockname()[1]
        self._store = dist.TCPStore(
            "127.0.0.1", port, count, True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        threads = max(1, self._threads // count)
        torch.set_num_threads(threads)
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": str(threads)}
        numbers = ending_signals()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # children inherit it, until they ignore them
        try:
            for rank in range(1, count):
                self._children.append(_started(["ddpm_cli.follower", rank, count, port], environ))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        threading.Thread(target=self._watch, daemon=True).start()

    def join(self, cfg: dict[str, Any], machine: Machine, micro: int | None, fingerprint: str) -> Single | Group:
        """The others build the run that cfg and machine say; once they have, all are one group."""
        if self._store is None:
            return SINGLE
        chosen = {"device": machine.device.type, "precision": machine.precision, "compile": machine.compile}
        self._store.set(FINGERPRINT, fingerprint)
        self._store.set(PLAN, json.dumps({"config": yaml.safe_dump({**cfg, **chosen}), "micro_batch_size": micro}))
        while not self._store.check([f"{READY}/{rank}" for rank in range(1, self.count)]):
            self.check()
            if self._store.check([FAILED]):
                raise WorldError(self._store.get(FAILED).decode())
            time.sleep(0.02)
        if machine.device.type == "cuda":
            torch.cuda.set_device(machine.device)
        self.group = Group(0, self.count, self._store, self._lost)
        self.group.connect(machine.device)
        return self.group

    def ending(self, signals: Signals) -> bool:
        """Whether the run is to end for a signal; WorldError if a rank has died."""
        self.check()
        if signals and self.group is not None:
            self.group.tell_to_end()
        return bool(signals)

    def check(self) -> None:
        """WorldError if a rank started here has ended."""
        if any(child.poll() is not None for child, _ in self._children):
            raise self._lost()

    def _lost(self) -> WorldError:
        """What to tell when a rank is gone."""
        deadline = time.monotonic() + 1.0  # the system tells of a closed connection before it does of a death
        dead = None
        while self._children and dead is None and time.monotonic() < deadline:
            ended = ((r, child, err) for r, (child, err) in enumerate(self._children, 1) if child.poll() is not None)
            dead = next(ended, None)
            time.sleep(0.01)
        if dead is None:
            told = "a rank is gone"
        else:
            rank, child, err = dead
            told = f"rank {rank} died ({_how(child.returncode, err)})"
        if checkpoints(self._run):
            return WorldError(f"{told}; resume with: ddpm-train resume={self._run}")
        return WorldError(f"{told}; the run had made no checkpoint yet, start it again")

    def _watch(self) -> None:
        """Ends this process when it waits, where no exception reaches it, for a rank that has died."""
        while not self._left.wait(0.5):
            if all(child.poll() is None for child, _ in self._children):
                continue
            if self._left.wait(_GRACE) or not self._stuck():
                return  # the next collective or look at the ranks will tell
            print(f"error: {self._lost()}", file=sys.stderr, flush=True)
            self._end_children(0.0)
            os._exit(3)

    def _stuck(self) -> bool:
        return self.group is not None and (self.group.broken or torch.cuda.is_initialized())

    def _end_children(self, grace: float) -> None:
        deadline = time.monotonic() + grace
        for child, err in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
            child.kill()
            child.wait()
            err.close()
            if child.stdin:
                child.stdin.close()


def _started(words: list[Any], environ: dict[str, str]) -> tuple[subprocess.Popen, IO[bytes]]:
    """A child that ends when its stdin does, and the file of what it says on stderr."""
    said = tempfile.TemporaryFile()  # noqa: SIM115 closed with the child
    argv = [sys.executable, "-P", "-m", *map(str, words)]
    return subprocess.Popen(argv, env=environ, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said), said


def _how(code: int, said: IO[bytes]) -> str:
    """How a child ended: the signal, or the last line it said."""
    if code < 0:
        return signal.Signals(-code).name
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:160] if lines else f"exit code {code}"
