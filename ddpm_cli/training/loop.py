"""The training loop: steps, and at their cadence metrics, sample grids and checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ddpm_cli.errors import WorldError
from ddpm_cli.training.journal import Journal
from ddpm_cli.training.meter import Meter
from ddpm_cli.training.state import TrainState
from ddpm_cli.training.step import StepMetrics, Trainer


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


def train(
    trainer: Trainer,
    state: TrainState,
    cadence: Cadence,
    journal: Journal,
    *,
    sample: Callable[[TrainState], None],
    save: Callable[[TrainState], None],
    interrupted: Callable[[], bool],
) -> dict[str, float]:
    """Trains from state.step to the cadence's end, or until interrupted() is true; ends with a checkpoint of the last
    step.

    Returns the last metrics; WorldError at a loss or gradient that is not finite, which is neither applied nor saved.
    """
    device = next(state.network.parameters()).device
    meter, last, saved = Meter(trainer.denoiser.schedule.num_timesteps, device), {}, state.step
    watch = Watch(state, trainer)
    while state.step < cadence.end and not interrupted():
        metrics = trainer(state)
        meter.add(metrics)
        watch.add(metrics)
        journal.tick()
        step = state.step
        if device.type == "cpu" or cadence.due(cadence.log_every, step) or cadence.due(cadence.checkpoint_every, step):
            watch.check()
        if cadence.due(cadence.log_every, step) or step == cadence.end:
            last = {**meter.summary(), "lr": trainer.lr(step - 1)}
            journal.metrics(step, last)
        paused = meter.pause()
        if cadence.due(cadence.sample_every, step):
            sample(state)
        if cadence.due(cadence.checkpoint_every, step):
            save(state)
            saved = step
        meter.resume(paused)
    watch.check()
    if saved != state.step:
        save(state)
    return last


class Watch:
    """Remembers, on the device, whether a loss or gradient was not finite, so that asking is the only wait."""

    def __init__(self, state: TrainState, trainer: Trainer):
        self.state, self.trainer = state, trainer
        self._bad: torch.Tensor | None = None

    def add(self, metrics: StepMetrics) -> None:
        finite = metrics.total.isfinite().all()
        if not self.state.scaler.is_enabled():  # a scaler skips infinite gradients by itself and lowers its scale
            finite &= metrics.grad_norm.isfinite()
        self._bad = ~finite if self._bad is None else self._bad | ~finite

    def check(self) -> None:
        if self._bad is not None and bool(self._bad):
            step = self.state.step
            raise WorldError(
                f"the loss or its gradient was not finite at or before step {step} "
                f"(lr {self.trainer.lr(step - 1):.3g}); the step was not applied.\n"
                "Try a lower optimizer.lr, precision=fp32 or training.max_grad_norm=1, "
                "and go on with resume=RUN_DIR from the last checkpoint"
            )
