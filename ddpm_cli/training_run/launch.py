"""The other ranks of a run, as the first sees them: started beside it or found where a launcher started them, told what
to build, watched, ended."""

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ddpm_cli.build.machine import check_place, num_ranks
from ddpm_cli.config.context import Context
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.run_dir.find import checkpoints
from ddpm_cli.system.launch_env import Place
from ddpm_cli.system.ranks import Children, launchers_store
from ddpm_cli.training.data_parallel import SINGLE_RANK, Ranks, SingleRank
from ddpm_cli.training_run.rank import FAILED, LOGS, READY, RUN, follow

log = logging.getLogger("ddpm_cli")
_GRACE = 5.0  # seconds: for a rank to end when told so, and for this process to see that one has died


def check_launched(place: Place | None, cfg: dict[str, Any], context: Context) -> None:
    """UserError for what does not go with ranks that a launcher started."""
    check_place(place, cfg, context.typed_keys)
    if place is not None:
        check_shares(cfg, place.world, f"{place.launcher} started {place.world} ranks")


def ranks_for(cfg: dict[str, Any]) -> int:
    """How many ranks share the batch: of `auto` as many as can have equal shares."""
    size = cfg["training"]["batch_size"]
    count = num_ranks(cfg, size)
    if cfg["devices"] == "auto":
        return max(number for number in range(1, count + 1) if size % number == 0)
    check_shares(cfg, count, f"devices={count}")
    return count


def check_shares(cfg: dict[str, Any], count: int, why: str) -> None:
    """UserError for a batch of which the ranks cannot have equal shares."""
    size = cfg["training"]["batch_size"]
    if size % count:
        near = sorted({max(1, size // count) * count, -(-size // count) * count})
        others = " or ".join(f"training.batch_size={number}" for number in near)
        raise UserError(f"{why}, and training.batch_size={size} is no multiple of {count}; use {others}")


class Workers:
    """The first rank's view of the others. Leaving it ends them, however the run ended."""

    def __init__(self, place: Place | None):
        self.place, self.count = place, place.world if place else 1
        self.ranks: Ranks | None = None
        self._store: dist.Store | None = launchers_store(place) if place else None
        self._children: Children | None = None
        self._run, self._left = Path(), threading.Event()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # A rank that ended by itself, at the step where all do, was not waited for in vain.
        healthy = self.ranks is not None and not self.ranks.waits and (error is None or isinstance(error, SystemExit))
        self._left.set()
        if self.place is not None and self._store is not None and self.ranks is None:
            self._store.set(RUN, json.dumps({"failed": 2 if isinstance(error, UserError) else 3}))
        if self._children is not None:
            self._children.end(_GRACE if healthy else 0.0)
        if dist.is_initialized() and (healthy or not torch.cuda.is_initialized()):
            dist.destroy_process_group()

    def start(self, count: int, run: Path) -> None:
        """Starts count - 1 ranks on this machine, unless a launcher did. They wait for `join`."""
        self._run = run
        if self.place is not None or count == 1:
            return
        self.count = count
        self._children = Children(follow, count)
        self._store = self._children.store
        threading.Thread(target=self._watch, daemon=True).start()

    def join(self, told: dict[str, Any], device: torch.device) -> SingleRank:
        """The others build the run that `told` says (JSON); once they have, all are one group."""
        if self._store is None:
            return SINGLE_RANK
        self._store.set(RUN, json.dumps(told))
        while not self._store.check([f"{READY}/{rank}" for rank in range(1, self.count)]):
            self.check()
            time.sleep(0.02)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self.ranks = Ranks(0, self.count, self._lost)
        self.ranks.connect(self._store, device, self._run / LOGS)
        return self.ranks

    def check(self) -> None:
        """WorldError if a rank cannot go on, or one started here has died."""
        told = self._store is not None and self._store.check([FAILED])
        if told or (self._children is not None and self._children.died()):
            raise self._lost()

    def _lost(self) -> WorldError:
        """What to tell when a rank is gone: why it went, which is known a moment after the connection is closed."""
        deadline, told = time.monotonic() + 1.0, None
        while told is None and time.monotonic() < deadline:
            if self._store is not None and self._store.check([FAILED]):
                told = self._store.get(FAILED).decode(errors="replace")
            elif self._children is not None:
                told = self._children.death(0.1)
            else:
                time.sleep(0.1)
        log_of = f" (see {self._run / LOGS})" if (self._run / LOGS).exists() else ""
        told = f"{told or 'a rank is gone'}{log_of}"
        if checkpoints(self._run):
            return WorldError(f"{told}; resume with: ddpm-train resume={self._run}")
        return WorldError(f"{told}; the run had made no checkpoint yet, start it again")

    def _watch(self) -> None:
        """Ends this process when it waits, where no exception reaches it, for a rank that has died."""
        assert self._children is not None
        while not self._left.wait(0.5):
            if not self._children.died():
                continue
            if self._left.wait(_GRACE) or not self._stuck():
                return  # the next collective or look at the ranks will tell
            print(f"error: {self._lost()}", file=sys.stderr, flush=True)
            self._children.end(0.0)
            os._exit(3)

    def _stuck(self) -> bool:
        return self.ranks is not None and (self.ranks.waits or torch.cuda.is_initialized())
