"""Numbered work shared among ranks: whichever is free takes the next number, until none is left.

What a number gives must be a function of it alone, and each rank writes down what it made, whole or not at all. So
ranks need no word of one another, and none waits for the others but rank 0, which decides what is to be done
(`Team.begin`), tells how far all are, and puts together what they made (after `Team.finish`).
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch.distributed as dist

from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.system.launch_env import Place
from ddpm_cli.system.memory import is_out_of_memory, out_of_memory
from ddpm_cli.system.progress import progress_bar
from ddpm_cli.system.ranks import Children, device_of, launchers_store
from ddpm_cli.system.signals import Signals

log = logging.getLogger("ddpm_cli")
# Keys of the store in which the ranks meet. TOLD: what is to be done, as JSON, or how rank 0 ended before it knew (its
# exit code, "failed"); BUSY: how many ranks work; NEXT, DONE: how many numbers are taken, and units done; FAILED:
# why a rank cannot go on; FINISHED/RANK: has nothing left to do; ALIVE/RANK: counts on as long as it lives.
_TOLD, _BUSY, _NEXT, _DONE = "told", "busy", "next", "done"
_FAILED, _FINISHED, _ALIVE = "failed", "finished", "alive"
_LOOK = 0.5  # seconds between two looks at the others
_SILENT = 60  # looks without a sign of life, after which a rank that a launcher started counts as gone
_LINES = 10  # of progress, at most, where there is no terminal


class Share:
    """A rank's part of the work."""

    def __init__(self, store: dist.Store, look: Callable[[], None]):
        self._store = store
        self.look = look  # raises what is to end the work: to be called often, as between the steps of a batch
        store.add(_BUSY, 1)

    def numbers(self, count: int) -> Iterator[int]:
        """Those of 0 to count - 1 that no other rank has taken."""
        while (number := self._store.add(_NEXT, 1) - 1) < count:
            self.look()
            yield number

    def tell(self, units: int) -> None:
        """So many more are done."""
        self._store.add(_DONE, units)


Work = Callable[[dict[str, Any], Share], None]  # of what rank 0 told, with the rank's own `device` -> all is written


class Team:
    """All ranks, as rank 0 sees them: `count`, started here to do `work` unless a launcher did. Leaving it ends those
    started here.

    goes_on: what to tell the user of how the work can be completed, should it be ended.
    """

    def __init__(self, place: Place | None, work: Work, count: int, goes_on: str):
        self.count, self._place, self._goes_on = count, place, goes_on
        self._children = Children(partial(_follow_started, work), count) if place is None and count > 1 else None
        self._store: dist.Store = dist.HashStore()
        if place is not None:
            self._store = launchers_store(place)
        elif self._children is not None:
            self._store = self._children.store
        self._silent = dict.fromkeys(range(1, count), (0, 0)) if place is not None else {}  # last sign; looks since
        self._begun, self._looked = False, 0.0
        self._signals, self._bar, self._unit = Signals("flag"), progress_bar(disable=True), ""

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._bar.close()
        if self._place is not None and not self._begun:
            self._store.set(_TOLD, json.dumps({"failed": 2 if isinstance(error, UserError) else 3}))
        if self._children is not None:
            self._children.end(0.0)  # if all went well, they have nothing left to write
        if isinstance(error, dist.DistError):
            raise WorldError(f"the launcher is gone; {self._goes_on}") from error

    def begin(self, told: dict[str, Any], total: int, unit: str, signals: Signals) -> Share:
        """The others begin, on what is `told` (JSON); rank 0's own part. total: of units to be done."""
        self._bar, self._unit = progress_bar(total=total, unit=unit, dynamic_ncols=True), unit
        self._begun, self._signals = True, signals
        self._store.set(_TOLD, json.dumps(told))
        return Share(self._store, self._look)

    def finish(self) -> None:
        """Once rank 0 has found nothing left: waits until the others have done what they took. One that is not even
        ready to take a number is not waited for, unless it would miss the store that rank 0 holds."""
        self._store.add(_BUSY, -1)
        others = [f"{_FINISHED}/{rank}" for rank in range(1, self.count)] if self._place is not None else []
        while self._store.add(_BUSY, 0) > 0 or (others and not self._store.check(others)):
            self._look()
            time.sleep(0.02)
        self._show()

    def _look(self) -> None:
        """WorldError if a rank cannot go on, SystemExit if a signal has come (a launcher sends one when a rank fails);
        shows how far all are."""
        if time.monotonic() - self._looked < _LOOK and not self._signals:
            return
        self._looked = time.monotonic()
        self._show()
        failed = self._store.get(_FAILED).decode() if self._store.check([_FAILED]) else self._gone()
        if failed is not None:
            raise WorldError(f"{failed}; {self._goes_on}")
        if self._signals:
            log.info("stopped by a signal; %s", self._goes_on)
            raise SystemExit(self._signals.exit_code)

    def _gone(self) -> str | None:
        """Which rank is gone without a word; None if none is."""
        for rank, (before, looks) in self._silent.items():
            sign = self._store.add(f"{_ALIVE}/{rank}", 0)
            lives = sign != before or self._store.check([f"{_FINISHED}/{rank}"])
            self._silent[rank] = (sign, 0 if lives else looks + 1)
            if not lives and looks >= _SILENT:
                return f"rank {rank} is gone"
        return self._children.death() if self._children is not None else None

    def _show(self) -> None:
        before, done, total = self._bar.n, self._store.add(_DONE, 0), self._bar.total
        if self._bar.disable and total and done * _LINES // total > before * _LINES // total:
            log.info("%d of %d %ss", done, total, self._unit)
        self._bar.n = done
        self._bar.refresh()


def follow(work: Work, place: Place, store: dist.Store, signals: Signals) -> None:
    """What a rank beside the first does. signals: its policy from when it has been told what to do."""
    store.wait([_TOLD])
    told = json.loads(store.get(_TOLD))
    if "failed" in told:
        raise SystemExit(told["failed"])
    signals.start()

    def look() -> None:
        if signals:
            raise SystemExit(signals.exit_code)

    left = threading.Event()
    threading.Thread(target=_live, args=(place, store, left), daemon=True).start()
    try:
        work({**told, "device": device_of(place, told["device"])}, Share(store, look))
        store.add(_BUSY, -1)
        store.set(f"{_FINISHED}/{place.rank}", "1")
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        if is_out_of_memory(error):
            why = str(out_of_memory("", "try a smaller batch_size", error))
        store.set(_FAILED, f"rank {place.rank} failed ({' '.join(why.split())[:300]})")
        raise
    finally:
        left.set()


def _follow_started(work: Work, place: Place, store: dist.Store) -> None:
    """The whole of a process that Team started."""
    follow(work, place, store, Signals("ignore"))


def follow_launched(work: Work, place: Place) -> None:
    """What a rank does that torchrun or srun started. It is quiet: rank 0 tells how the work ends."""
    Signals("default").start()
    logging.getLogger("ddpm_cli").addHandler(logging.NullHandler())
    try:
        follow(work, place, launchers_store(place), Signals("flag"))
    except (WorldError, dist.DistError) as error:
        raise SystemExit(3) from error


def _live(place: Place, store: dist.Store, left: threading.Event) -> None:
    while not left.wait(_LOOK):
        try:
            store.add(f"{_ALIVE}/{place.rank}", 1)
        except dist.DistError:  # rank 0 is gone
            return
