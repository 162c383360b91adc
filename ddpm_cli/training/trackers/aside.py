"""A tracker that may be slow, out of the run's way, and what it has been told already."""

import json
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ddpm_cli.system.files import write_text
from ddpm_cli.training.trackers.base import Settings, Tracker, tell_of

log = logging.getLogger("ddpm_cli")
PATIENCE = 20.0  # seconds that a run's end waits for what is still on its way
_MOST_WAITING = 1000  # calls; beyond that they are dropped, since the run does not wait


class Aside(Tracker):
    """Hands each call to a thread, which makes the tracker and then calls it: neither a server that does not answer
    nor one that is slow is waited for, but for PATIENCE seconds at the end. It draws no random numbers of torch's."""

    def __init__(self, name: str, make: Callable[[], Tracker]):
        self.name, self._make = name, make
        self._calls: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue(_MOST_WAITING)
        self._failed = self._dropped = False
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def begin(self, settings: Settings, config: str, step: int) -> None:
        self._put("begin", settings, config, step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._put("scalars", dict(values), step)

    def picture(self, tag: str, picture: Image.Image, step: int) -> None:
        self._put("picture", tag, picture, step)

    def sound(self, tag: str, samples: Tensor, sample_rate: int, step: int, file: Path) -> None:
        self._put("sound", tag, samples, sample_rate, step, file)

    def rewind(self, step: int) -> None:
        self._put("rewind", step)

    def end(self, status: str, figures: Mapping[str, float]) -> None:
        for last in (("end", (status, dict(figures))), None):
            if not self._failed:
                try:
                    self._calls.put(last, timeout=PATIENCE)
                except queue.Full:
                    break
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            log.warning("trackers: %s has not taken everything within %.0f seconds", self.name, PATIENCE)

    def _put(self, method: str, *values: Any) -> None:
        if self._failed:
            return
        try:
            self._calls.put_nowait((method, values))
        except queue.Full:
            if not self._dropped:
                log.warning("trackers: %s is slower than the run; what it cannot take is left out", self.name)
            self._dropped = True

    def _work(self) -> None:
        try:
            tracker = self._make()
            while (call := self._calls.get()) is not None:
                method, values = call
                getattr(tracker, method)(*values)
        except Exception as error:
            self._failed = True
            tell_of(self.name, error)


class Ledger:
    """What a tracker of a run has been told, in a file of the run's folder: the id under which the run goes on there,
    and the last step of each tag. A resumed run makes steps again that were told before it was stopped, in the same
    bits: they are not told twice."""

    def __init__(self, path: Path):
        self.path, self.id, self._last = path, "", dict[str, int]()
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            self.id, self._last = kept["id"], kept["last"]

    def name(self, run_id: str) -> None:
        """The id is known."""
        self.id = run_id
        self._write()

    def news(self, tags: Iterable[str], step: int) -> list[str]:
        """Those of which this step is not told yet."""
        return [tag for tag in tags if self._last.get(tag, -1) < step]

    def told(self, tags: Iterable[str], step: int) -> None:
        self._last |= dict.fromkeys(tags, step)
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        write_text(self.path, json.dumps({"id": self.id, "last": self._last}) + "\n")
