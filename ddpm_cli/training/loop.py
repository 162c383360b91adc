"""The training loop: steps, and at their cadence metrics, sample grids and checkpoints."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_cli.errors import WorldError
from ddpm_cli.runtime import is_out_of_memory
from ddpm_cli.training.journal import Journal
from ddpm_cli.training.memory import out_of_memory
from ddpm_cli.training.meter import Meter
from ddpm_cli.training.state import TrainState
from ddpm_cli.training.step import Trainer
from ddpm_cli.training.watch import NonFinite, Watch, first_non_finite

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
class Keeper:
    """What the loop asks of the run's folder and of the process."""

    sample: Callable[[TrainState], None]
    save: Callable[[TrainState, dict[str, Any], bool], Any]  # state, progress, whether it is the best so far
    reload: Callable[[TrainState], dict[str, Any]]  # the newest good checkpoint into the state; its progress
    dump: Callable[[int, Tensor | None, Tensor | None], Path]  # what a step that was not finite was made of
    newest: Callable[[], Path | None]  # the checkpoint to go on from
    interrupted: Callable[[], bool]


def train(
    trainer: Trainer,
    state: TrainState,
    cadence: Cadence,
    journal: Journal,
    keeper: Keeper,
    *,
    progress: dict[str, Any] | None = None,
    on_nonfinite: str = "stop",
    keep_best: bool = False,
) -> dict[str, float]:
    """Trains from state.step to the cadence's end, or until keeper.interrupted(); ends with a checkpoint of the last
    step. Returns the last metrics.

    progress: what a checkpoint holds beside the state. A loss or gradient that is not finite is neither applied nor
    saved: on_nonfinite=stop raises WorldError, rollback goes back to the last checkpoint and leaves that batch out.
    """
    loop = Loop(trainer, state, cadence, journal, keeper, on_nonfinite, keep_best)
    if progress:
        loop.load_progress(progress)
    return loop.run()


class Loop:
    """The run in progress: beside the state, what has been measured since the last log step, and the batches left
    out."""

    def __init__(
        self,
        trainer: Trainer,
        state: TrainState,
        cadence: Cadence,
        journal: Journal,
        keeper: Keeper,
        on_nonfinite: str,
        keep_best: bool,
    ):
        self.trainer = replace(trainer, batch=self._unless_interrupted(trainer.batch))
        self.state, self.cadence, self.journal, self.keeper = state, cadence, journal, keeper
        self.on_nonfinite, self.keep_best = on_nonfinite, keep_best
        self.device = next(state.network.parameters()).device
        self.meter = Meter(trainer.denoiser.schedule.num_timesteps, self.device)
        self.watch = Watch(state)
        self.last: dict[str, float] = {}
        self.best: float | None = None
        self.skipped: set[int] = set()
        self.saved: int | None = state.step if state.step else None
        self.pending = False  # what follows a step (metrics, preview, checkpoint) was interrupted

    def progress(self) -> dict[str, Any]:
        """What a checkpoint holds beside the state, so that a resumed run also writes the same metrics."""
        return {
            "meter": self.meter.state_dict(),
            "last": self.last,
            "best": self.best,
            "skipped": sorted(self.skipped),
            "pending": self.pending,
        }

    def load_progress(self, progress: dict[str, Any]) -> None:
        self.meter.load_state_dict(progress["meter"])
        self.last, self.best = dict(progress["last"]), progress["best"]
        self.skipped |= set(progress["skipped"])
        self.pending = progress["pending"]

    def run(self) -> dict[str, float]:
        if self.on_nonfinite == "rollback" and self.saved is None:
            self._save()  # what is gone back to before the first checkpoint
        try:
            if self.pending:
                self._after_step()
            while self.state.step < self.cadence.end and not self.keeper.interrupted():
                try:
                    self._step()
                    self._after_step()
                except NonFinite as found:
                    self._recover(found)
        except Interrupted:
            pass
        if self.saved != self.state.step:
            try:
                self.watch.check()
                self._save()
            except NonFinite as found:
                raise self._end(found) from found
        return self.last or (self.meter.means() if self.meter else {})

    def _step(self) -> None:
        if self.state.step in self.skipped:
            self.state.step += 1
        else:
            metrics = self._made()
            self.meter.add(metrics)
            self.watch.add(metrics)
        self.journal.tick()
        self.pending = True

    def _made(self):
        try:
            return self.trainer(self.state)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            s = self.trainer.settings
            micro = min(s.micro_batch_size, -(-s.batch_size // self.trainer.ranks.world))
            raise out_of_memory(self.state.step, s.batch_size, micro, self.keeper.newest(), error) from error

    def _after_step(self) -> None:
        step, cadence = self.state.step, self.cadence
        saving = cadence.due(cadence.checkpoint_every, step)
        if self.device.type == "cpu" or cadence.due(cadence.log_every, step) or saving:
            self.watch.check()
        if self.meter and cadence.due(cadence.log_every, step):
            self.last = {**self.meter.summary(), "lr": self.trainer.lr(step - 1)}
            self.journal.metrics(step, self.last)
        paused = self.meter.pause()
        if cadence.due(cadence.sample_every, step):
            self._preview()
        self.pending = False
        if saving:
            self._save(judge=True)
        self.meter.resume(paused)

    def _preview(self) -> None:
        """A preview that fails must not cost the steps before it: they are saved, and it stays pending."""
        try:
            self.keeper.sample(self.state)
        except Interrupted:
            raise
        except Exception as error:
            if self.saved != self.state.step:
                self.watch.check()
                try:
                    self._save()
                except WorldError as second:  # the same full disk, as like as not
                    log.warning("%s", second)
                    raise error from None
            log.warning("the preview of step %d failed; the step is saved", self.state.step)
            raise

    def _save(self, *, judge: bool = False) -> None:
        """`judge`: at the checkpoints of the cadence alone, so that an interruption does not change what is best."""
        bad = first_non_finite(self.state.state_dict())
        if bad is not None:
            log.warning("%s is not finite at step %d", bad, self.state.step)
            raise NonFinite(self.state.step - 1)
        loss = self.last.get("loss")
        best = judge and self.keep_best and loss is not None and (self.best is None or loss < self.best)
        if best:
            self.best = loss
        self.keeper.save(self.state, self.progress(), best)
        self.saved = self.state.step

    def _recover(self, found: NonFinite) -> None:
        """Goes back to the last checkpoint and leaves the batch out, if that is what is asked for and may help."""
        newest = self.keeper.newest()
        if self.on_nonfinite == "stop" or newest is None or len(self.skipped) >= _MOST_SKIPPED:
            raise self._end(found) from found
        dump = self.keeper.dump(found.step, found.t, found.total)
        self.skipped.add(found.step)
        self.load_progress(self.keeper.reload(self.state))
        self.trainer.ranks.share(self.state)
        self.saved, self.watch = self.state.step, Watch(self.state)
        self.journal.rewind(self.state.step)
        log.warning(
            "step %d was not finite; back to step %d, and its batch is left out (%d of at most %d); it is in %s",
            found.step + 1, self.state.step, len(self.skipped), _MOST_SKIPPED, dump,
        )  # fmt: skip

    def _end(self, found: NonFinite) -> WorldError:
        dump, newest = self.keeper.dump(found.step, found.t, found.total), self.keeper.newest()
        lr = self.trainer.lr(found.step)
        more = f" after {len(self.skipped)} batches left out" if self.skipped else ""
        return WorldError(
            f"the loss or its gradient was not finite at step {found.step + 1} (lr {lr:.3g}){more}; the step was not "
            f"applied, its batch is in {dump}.\n"
            f"{f'The last good checkpoint is {newest}' if newest else 'There is no checkpoint yet'}.\n"
            "Try a lower optimizer.lr, precision=fp32, training.max_grad_norm=1 or training.on_nonfinite=rollback"
        )

    def _unless_interrupted(self, batch):
        """The batches, until a signal comes: then the step that asks for one is given up before it changes anything."""

        def guarded(step: int, start: int, stop: int):
            if self.keeper.interrupted():
                raise Interrupted
            return batch(step, start, stop)

        return guarded
