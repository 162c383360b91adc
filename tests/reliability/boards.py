"""R18: what TensorBoard and metrics.jsonl show after crashes is one point a step, in order."""

import random
from pathlib import Path

from reliability import forks
from reliability.runs import STEPS, TINY, Outcome, figures, trained, unless


def r18_metrics(place: Path, trials: int) -> Outcome:
    """Killed between checkpoints and gone on with, with event files cut off: one point a step, those of the whole
    run."""
    outcome, more = Outcome(), ["training.log_every=1", "training.checkpoint_every=4", "training.sample_every=0"]
    reference = trained(place, "logged", *more)
    for trial in range(trials):
        dice, run = random.Random(trial), place / f"crashed_{trial}"
        args = [*TINY, *more, f"run_dir={run}", "resume=auto"]
        for _ in range(2):
            forks.run("train", *args, place=place, hook=_killed_at(dice.randrange(1, STEPS)))
            for path in run.glob("tensorboard/events*"):
                if dice.random() < 0.5 and path.stat().st_size > 40:
                    with open(path, "r+b") as file:
                        file.truncate(path.stat().st_size - dice.randrange(1, 30))
            if dice.random() < 0.5 and (run / "metrics.jsonl").exists():
                with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
                    file.write('{"step": 99, "lo')
        ended = forks.run("train", *args, place=place)
        if ended.code:
            outcome.add(f"crash {trial}", f"exit {ended.code}: {ended.err[-300:]}")
            continue
        steps = board_steps(run)
        outcome.add(
            f"crash {trial}",
            unless(figures(run) == figures(reference), "metrics.jsonl is not the whole run's"),
            unless(steps == sorted(set(steps)) and steps[-1] == STEPS, f"points {steps}"),
        )
    return outcome


def board_steps(run: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars("curves/loss")]


def _killed_at(step: int) -> forks.Hook:
    """Dies as it was told to by the kernel, once that many steps were logged, with the event file flushed."""

    def hook() -> None:
        import os
        import signal

        from ddpm_cli.training import journal

        real = journal.Journal.metrics

        def metrics(self, number, values):
            real(self, number, values)
            if number >= step:
                self.trackers._trackers["tensorboard"]._writer.flush()
                os.kill(os.getpid(), signal.SIGKILL)

        journal.Journal.metrics = metrics

    return hook
