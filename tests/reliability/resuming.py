"""R1 to R3: a run that is killed or stopped and gone on with is the run that was never stopped."""

import os
import random
import signal
import time
from pathlib import Path

from ddpm_cli.run_dir import checkpoint
from ddpm_cli.run_dir.find import checkpoints
from reliability import forks
from reliability.runs import STEPS, TINY, Outcome, copied, difference, state_of, train, trained, unless


def r1_kills(place: Path, trials: int) -> Outcome:
    """SIGKILL at random times and inside the writing of checkpoints: every run can be gone on with, to the bit."""
    reference, outcome = trained(place, "reference"), Outcome()
    ended = train(place, "timed")
    inside = 0
    for trial in range(trials):
        dice = random.Random(trial)
        name = f"killed_{trial}"
        run = place / name
        args = [*TINY, f"run_dir={run}", "resume=auto"]
        problems: list[str | None] = []
        for _ in range(dice.choice([1, 1, 2])):
            if trial % 2:
                child = forks.start("train", args, place, _killed_in_save(dice.randrange(1, 160)))
                inside += 1
            else:
                child = forks.start("train", args, place)
                try:
                    time.sleep(dice.uniform(0.2, 1.05) * ended.seconds)
                finally:
                    child.kill()
            child.wait()
            problems.append(_not_loadable(run))
        last = forks.run("train", *args, place=place)
        if last.code:
            problems.append(f"exit {last.code}: {last.err[-300:]}")
        else:
            problems += [difference(run, reference), _litter(run)]
        outcome.add(name, *problems)
    outcome.note = f"{inside} of the kills inside a save"
    return outcome


def _not_loadable(run: Path) -> str | None:
    files = checkpoints(run)
    for path in files:
        try:
            checkpoint.load(path)
        except Exception as error:
            return f"{path.name} does not load: {error}"
    return None


def _litter(run: Path) -> str | None:
    left = [str(path.relative_to(run)) for path in run.rglob("*.tmp")]
    return f"left behind: {left}" if left else None


def _killed_in_save(at: int) -> forks.Hook:
    """Kills the process at the at-th event inside saves: a write, before and after fsync, verifying and renaming."""

    def hook() -> None:
        count = 0

        def event() -> None:
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

        def around(function):
            def wrapped(*args, **kwargs):
                event()
                result = function(*args, **kwargs)
                event()
                return result

            return wrapped

        checkpoint._Summed.write = around(checkpoint._Summed.write)
        checkpoint.verify = around(checkpoint.verify)
        os.fsync, os.replace, os.link = around(os.fsync), around(os.replace), around(os.link)

    return hook


R2_VARIANTS = {
    "everything on": [],
    "no dropout, no accumulation": ["model.dropout=0", "training.micro_batch_size=null"],
    "sgd, fixed variance": ["optimizer=sgd", "optimizer.momentum=0.9", "variance=fixed_small", "loss=denoising"],
    "auto micro-batch": ["training.micro_batch_size=auto"],
    "muon": ["optimizer=muon"],
}


def r2_stops(place: Path, trials: int) -> Outcome:
    """Stopping mid-epoch, at an epoch's end and one step after, then going on: equal to the bit."""
    outcome = Outcome()
    variants = list(R2_VARIANTS.items())[: max(1, trials // 3)]
    for number, (title, args) in enumerate(variants):
        reference = trained(place, f"whole_{number}", *args)
        for stop in (4, 6, 7)[: max(1, trials)]:
            run = place / f"stopped_{number}_{stop}"
            first = train(place, run.name, *args, f"training.stop_at={stop}")
            again = forks.run("train", f"resume={run}", place=place)
            codes = unless(first.code == again.code == 0, f"exits {first.code}, {again.code}: {again.err[-300:]}")
            outcome.add(f"{title}, stop at {stop}", codes or difference(run, reference))
    _negative_controls(place, outcome)
    _other_micro_batch(place, outcome)
    return outcome


def _negative_controls(place: Path, outcome: Outcome) -> None:
    """With any one entry of the state as it is after the first step, the comparison must fail."""
    reference = trained(place, "whole_0")
    early, late = (
        checkpoint.load(trained(place, f"until_{step}", f"training.stop_at={step}") / f"checkpoints/step_{step:08d}.pt")
        for step in (1, 5)
    )
    for entry in ("nothing", "network", "emas", "optimizer", "step", "progress"):
        run = copied(place / "until_5", f"without_{entry}")
        changed = {} if entry == "nothing" else {entry: early[entry]}
        checkpoint.save(run / "checkpoints/step_00000005.pt", {**late, **changed})
        ended = forks.run("train", f"resume={run}", "training.stop_at=null", place=place)
        same = ended.code == 0 and difference(run, reference) is None
        problem = "the untouched copy differs" if entry == "nothing" else "the comparison does not notice"
        outcome.add(f"control: {entry} of step 1", unless(same == (entry == "nothing"), problem))


def _other_micro_batch(place: Path, outcome: Outcome) -> None:
    """Another micro-batch after the stop changes the result by rounding alone (without dropout)."""
    args = ["model.dropout=0"]
    reference = trained(place, "whole_dry", *args)
    run = place / "other_micro"
    train(place, run.name, *args, "training.stop_at=5")
    ended = forks.run("train", f"resume={run}", "training.micro_batch_size=4", place=place)
    files = [folder / "checkpoints" / f"step_{STEPS:08d}.pt" for folder in (run, reference)]
    ours, theirs = (checkpoint.load(file)["network"] for file in files)
    worst = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    bound = max(float(theirs[name].abs().max()) for name in theirs) * 1e-3
    outcome.add("another micro-batch", unless(ended.code == 0 and worst < bound, f"differs by {worst:.2g}"))


def r3_preparing_threads(place: Path, trials: int) -> Outcome:
    """The same run whatever number of threads prepared its data."""
    from reliability.pictures import write_pictures

    outcome, hashes = Outcome(), set()
    write_pictures(place / "pictures", 60)
    threads = [1, 2, 4, 7, 16, 3][:trials]
    for count in threads:
        cache = place / f"cache_{count}"
        folder = ["dataset=image_folder", f"dataset.root={place / 'pictures'}", f"dataset.cache={cache}"]
        shape = ["dataset.image_size=8", "dataset.channels=1", "dataset.flip=true"]
        kept = [arg for arg in TINY if not arg.startswith("dataset")]
        run = place / f"prepared_{count}"
        ended = forks.run("train", *kept, *folder, *shape, f"run_dir={run}", place=place, hook=_threads(count))
        if ended.code == 0:
            hashes.add(state_of(run))
        outcome.add(f"{count} threads", unless(ended.code == 0, ended.err[-300:]), unless(len(hashes) == 1, "differs"))
    return outcome


def _threads(count: int) -> forks.Hook:
    def hook() -> None:
        from ddpm_cli.data.prepare import pool

        pool._MIN_SECONDS = 0.0 if count > 1 else 1e9
        pool._num_cores = lambda: count

    return hook
