"""The training loop: steps, and at their cadence metrics, sample grids, measurements and checkpoints."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_cli.errors import WorldError
from ddpm_cli.system.memory import out_of_memory_told
from ddpm_cli.training.journal import NoJournal
from ddpm_cli.training.meter import Meter
from ddpm_cli.training.nonfinite import NonFinite, NonFiniteMonitor, first_non_finite
from ddpm_cli.training.state import TrainState
from ddpm_cli.training.step import StepMetrics, TrainStep

log = logging.getLogger("ddpm_cli")
_MOST_SKIPPED = 10  # batches of a run; more than that is no accident, and going on would only hide it


class Interrupted(Exception):
    """A signal came: leave what is begun (a step, a preview) as if it had not been."""


@dataclass(frozen=True)
class Cadence:
    """How often what is done, in steps; 0 is never. The run ends at num_steps, this invocation at stop_at if that is
    sooner."""

    num_steps: int
    stop_at: int | None
    log_every: int
    sample_every: int
    checkpoint_every: int

    @property
    def end(self) -> int:
        return self.num_steps if self.stop_at is None else min(self.stop_at, self.num_steps)

    def due(self, every: int, step: int) -> bool:
        return every > 0 and (step % every == 0 or step == self.num_steps)


@dataclass(frozen=True)
class Measurement:
    """Figures of the state, by name, found every so many steps: nothing of the run may depend on them. Those whose name
    ends in _at_LEVEL are points of a curve; they are written down, but are no result of the run."""

    every: int
    what: str  # for a person, if it fails
    measure: Callable[[TrainState], dict[str, float]]


@dataclass(frozen=True)
class Objective:
    """The figure by which best.pt is kept.

    at: the measurement that gives it: the best is judged, and saved, when it is made, as a figure belongs to the
    weights it was measured of. None: at the checkpoints of the cadence, by the last value.
    """

    name: str = "loss"
    higher_is_better: bool = False
    at: str | None = None


@dataclass(frozen=True)
class Callbacks:
    """What the loop asks of the run's folder and of the process."""

    sample: Callable[[TrainState], None]
    save: Callable[[TrainState, dict[str, Any], bool], Any]  # state, progress, whether it is the best so far
    reload: Callable[[TrainState], Mapping[str, Any]]  # the newest good checkpoint into the state; its progress
    dump: Callable[[int, Tensor | None, Tensor | None], Path]  # what a step that was not finite was made of
    newest: Callable[[], Path | None]  # the checkpoint to go on from
    interrupted: Callable[[], bool]  # asked by all ranks at the same place, and then true on all of them
    measurements: Sequence[Measurement] = ()


def train(
    train_step: TrainStep,
    state: TrainState,
    cadence: Cadence,
    journal: NoJournal,
    callbacks: Callbacks,
    *,
    progress: Mapping[str, Any] | None = None,
    on_nonfinite: str = "stop",
    keep_best: Objective | None = None,
    noise_scale: bool = False,
) -> dict[str, float]:
    """Trains from state.step to the cadence's end, or until callbacks.interrupted(); ends with a checkpoint of the last
    step. Returns the last metrics, and the last figures of each measurement.

    progress: what a checkpoint holds beside the state. A loss or gradient that is not finite is neither applied nor
    saved: on_nonfinite=stop raises WorldError, rollback goes back to the last checkpoint and leaves that batch out.
    """
    train_step = train_step.unless(callbacks.interrupted, Interrupted)
    loop = Loop(train_step, state, cadence, journal, callbacks, on_nonfinite, keep_best, noise_scale)
    if progress:
        loop.load_progress(progress)
    return loop.run()


@dataclass
class Loop:
    """The run in progress: beside the state, what has been measured since the last log step, and the batches left
    out."""

    train_step: TrainStep
    state: TrainState
    cadence: Cadence
    journal: NoJournal
    callbacks: Callbacks
    on_nonfinite: str
    keep_best: Objective | None
    noise_scale: bool
    last: dict[str, float] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    skipped: set[int] = field(default_factory=set)
    pending: bool = False  # what follows a step (metrics, preview, checkpoint) was interrupted

    def __post_init__(self) -> None:
        self.device = next(self.state.network.parameters()).device
        self.meter = Meter(self.device)
        self.monitor = NonFiniteMonitor(self.state)
        self.saved: int | None = self.state.step or None  # the step of the last checkpoint

    def progress(self) -> dict[str, Any]:
        """What a checkpoint holds beside the state, so that a resumed run also writes the same metrics."""
        return {
            "meter": self.meter.state_dict(),
            "last": self.last,
            "measured": self.measured,
            "best": self.best,
            "best_of": self.keep_best.name if self.keep_best else None,
            "skipped": sorted(self.skipped),
            "pending": self.pending,
        }

    def load_progress(self, progress: Mapping[str, Any]) -> None:
        self.meter.load_state_dict(progress["meter"])
        self.last, self.measured = dict(progress["last"]), dict(progress.get("measured", {}))
        if self.keep_best and progress.get("best_of", "loss") == self.keep_best.name:  # else it is of another figure
            self.best = progress["best"]
        self.skipped |= set(progress["skipped"])
        self.pending = progress["pending"]

    def run(self) -> dict[str, float]:
        if self.on_nonfinite == "rollback" and self.saved is None:
            self._save()  # what is gone back to before the first checkpoint
        try:
            if self.pending:
                self._after_step()
            while self.state.step < self.cadence.end and not self.callbacks.interrupted():
                try:
                    self._step()
                    self._after_step()
                except NonFinite as found:
                    self._recover(found)
        except Interrupted:
            pass
        if self.saved != self.state.step:
            try:
                self.monitor.check()
                self._save()
            except NonFinite as found:
                raise self._end(found) from found
        return (self.last or (self.meter.means() if self.meter else {})) | self.measured

    def _step(self) -> None:
        if self.state.step in self.skipped:
            self.state.step += 1
        else:
            with out_of_memory_told(
                lambda: self.train_step.out_of_memory_words(self.state.step, self.callbacks.newest())
            ):
                metrics = self._measured_step()
            self.meter.add(metrics)
            self.monitor.add(metrics)
        self.journal.tick()
        self.pending = True

    def _measured_step(self) -> StepMetrics:
        """The step, and where asked for before a log step the gradient's noise scale."""
        if not (self.noise_scale and self.cadence.due(self.cadence.log_every, self.state.step + 1)):
            return self.train_step(self.state)
        norm, count = self.train_step.half_gradient_norm(self.state)
        metrics = self.train_step(self.state)
        self.meter.add_half(norm, count, metrics)
        return metrics

    def _after_step(self) -> None:
        """What is due behind a step, in this order: nothing is shown or saved of a step that was not finite, and the
        checkpoint comes last, so that it knows that the metrics and the preview of its step are done."""
        step, cadence = self.state.step, self.cadence
        saving = cadence.due(cadence.checkpoint_every, step)
        if self.device.type == "cpu" or cadence.due(cadence.log_every, step) or saving:
            self.monitor.check()
        if self.meter and cadence.due(cadence.log_every, step):
            self.last = {**self.meter.summary(), "lr": self.train_step.lr(step - 1)}
            self.journal.metrics(step, self.last)
        paused = self.meter.pause()
        if (best := self._looked_at(saving)) or saving:
            self._save(best=best)
        self.meter.resume(paused)

    def _looked_at(self, saving: bool) -> bool:
        """What is due of previews and measurements, pending if it is interrupted: whether this is the best."""
        step, cadence, found = self.state.step, self.cadence, dict[str, float]()
        sampling = cadence.due(cadence.sample_every, step)
        made = [measurement for measurement in self.callbacks.measurements if cadence.due(measurement.every, step)]
        try:
            if sampling:
                with self._saved_if_it_fails("preview"):
                    self.callbacks.sample(self.state)
            for measurement in made:
                with self._saved_if_it_fails(measurement.what):
                    found |= measurement.measure(self.state)
            self.pending = False
        except Interrupted:
            found.clear()
        self.journal.measured(step, found)
        self.measured |= {name: value for name, value in found.items() if "_at_" not in name}
        best = not self.pending and self._is_best(saving, [measurement.what for measurement in made])
        if sampling or made or saving:  # what the first rank alone knows of
            self.pending, best = self.train_step.ranks.first((self.pending, best))
        if self.pending:
            raise Interrupted
        return best

    @contextmanager
    def _saved_if_it_fails(self, what: str) -> Iterator[None]:
        """What looks at the state must not cost the steps before it: they are saved, and it stays pending."""
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:
            if self.saved != self.state.step:
                self.monitor.check()
                try:
                    self._save()
                except WorldError as second:  # the same full disk, as like as not
                    log.warning("%s", second)
                    raise error from None
            log.warning("the %s of step %d failed; the step is saved", what, self.state.step)
            raise

    def _is_best(self, saving: bool, measured: list[str]) -> bool:
        """Judged at the cadences alone, so that an interruption does not change what is best."""
        goal = self.keep_best
        if goal is None or not (saving if goal.at is None else goal.at in measured):
            return False
        value = {**self.last, **self.measured}.get(goal.name)
        if value is None or math.isnan(value):
            return False
        if self.best is not None and not (value > self.best if goal.higher_is_better else value < self.best):
            return False
        self.best = value
        return True

    def _save(self, *, best: bool = False) -> None:
        bad = first_non_finite(self.state.state_dict())
        if bad is not None:
            log.warning("%s is not finite at step %d", bad, self.state.step)
            raise NonFinite(self.state.step - 1)
        self.callbacks.save(self.state, self.progress(), best)
        self.saved = self.state.step

    def _recover(self, found: NonFinite) -> None:
        """Goes back to the last checkpoint and leaves the batch out, if that is what is asked for and may help."""
        newest = self.callbacks.newest()
        if self.on_nonfinite == "stop" or newest is None or len(self.skipped) >= _MOST_SKIPPED:
            raise self._end(found) from found
        dump = self.callbacks.dump(found.step, found.t, found.total)
        self.skipped.add(found.step)
        self.load_progress(self.callbacks.reload(self.state))
        self.saved, self.monitor = self.state.step, NonFiniteMonitor(self.state)
        self.journal.rewind(self.state.step)
        log.warning(
            "step %d was not finite; back to step %d, and its batch is left out (%d of at most %d); it is in %s",
            found.step + 1, self.state.step, len(self.skipped), _MOST_SKIPPED, dump,
        )  # fmt: skip

    def _end(self, found: NonFinite) -> WorldError:
        dump, newest = self.callbacks.dump(found.step, found.t, found.total), self.callbacks.newest()
        lr = self.train_step.lr(found.step)
        more = f" after {len(self.skipped)} batches left out" if self.skipped else ""
        return WorldError(
            f"the loss or its gradient was not finite at step {found.step + 1} (lr {lr:.3g}){more}; the step was not "
            f"applied, its batch is in {dump}.\n"
            f"{f'The last good checkpoint is {newest}' if newest else 'There is no checkpoint yet'}.\n"
            "Try a lower optimizer.lr, precision=fp32, training.max_grad_norm=1 or training.on_nonfinite=rollback"
        )
