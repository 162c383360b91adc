"""R21: what R1, R2, R6 and R10 say of a run holds for a run of three ranks, whichever of them is hit."""

import os
import random
import signal
import time
from pathlib import Path

from ddpm_cli.run_dir.find import checkpoints
from reliability import forks
from reliability.runs import STEPS, TINY, Outcome, difference, trained, unless

WORLD = 3
RANKS = [*TINY, "training.batch_size=6", "training.micro_batch_size=1", f"devices={WORLD}"]


def r21_ranks(place: Path, trials: int) -> Outcome:
    """Killed or told to end at any moment, any of them; stopped and gone on with; started at once."""
    outcome, reference = Outcome(), trained(place, "reference", *RANKS[len(TINY) :])
    seconds = forks.run("train", *RANKS, f"run_dir={place / 'timed'}", place=place).seconds
    kinds = (_killed, _told, _stopped, _together)
    for trial in range(trials):
        kind, dice = kinds[trial % len(kinds)], random.Random(trial)
        name = f"{kind.__name__[1:]}_{trial}"
        outcome.add(name, *kind(place / name, dice, seconds, reference))
    return outcome


def ranks_of(pid: int) -> list[int]:
    """The process, and the ranks that it has started."""
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def _begun(run: Path, dice: random.Random) -> tuple[forks.Child, list[int]]:
    """A run that has saved something, but for one in four, and is at a random place; its ranks' ids."""
    child = forks.start("train", [*RANKS, f"run_dir={run}", "resume=auto"], run.parent / f"{run.name}_child", _slow)
    deadline = time.monotonic() + 60
    while len(ranks_of(child.pid)) < WORLD and time.monotonic() < deadline:
        time.sleep(0.02)
    while dice.random() < 0.75 and not checkpoints(run) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(dice.uniform(0.0, 1.5))
    return child, ranks_of(child.pid)


def _slow() -> None:
    """A run of some seconds. (Of the first rank: the others wait for it.)"""
    from ddpm_cli.training.step import TrainStep

    real = TrainStep.gradient

    def gradient(self, state):
        time.sleep(0.15)
        return real(self, state)

    TrainStep.gradient = gradient


def _goes_on(run: Path, reference: Path) -> list[str | None]:
    again = forks.run("train", *RANKS, f"run_dir={run}", "resume=auto", place=run.parent)
    return [unless(again.code == 0, f"cannot be gone on with: {again.err[-300:]}") or difference(run, reference)]


def _empties(child: forks.Child, seconds: float = 10.0) -> str | None:
    deadline = time.monotonic() + seconds
    while not child.group_is_empty() and time.monotonic() < deadline:
        time.sleep(0.05)
    return unless(child.group_is_empty(), "a process is left")


def _killed(run: Path, dice: random.Random, seconds: float, reference: Path) -> list[str | None]:
    child, pids = _begun(run, dice)
    victim = dice.randrange(len(pids))
    sent = time.monotonic()
    os.kill(pids[victim], signal.SIGKILL)
    ended = child.wait(60)
    took = time.monotonic() - sent
    done = ended.code == 0  # it was at its end already
    told = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    problems = [unless(took < 30, f"took {took:.0f} s"), _empties(child)]
    if victim and not done:
        problems.append(
            unless(
                ended.code == 3 and len(told) == 1 and f"rank {victim} died (SIGKILL)" in told[0],
                f"exit {ended.code}: {ended.err[-300:]}",
            )
        )
    return [*problems, *_goes_on(run, reference)]


def _told(run: Path, dice: random.Random, seconds: float, reference: Path) -> list[str | None]:
    child, pids = _begun(run, dice)
    number = dice.choice([signal.SIGTERM, signal.SIGINT])
    whom = dice.choice(["group", "first", "another"])
    sent = time.monotonic()
    if whom == "group":
        child.kill(number, group=True)
    elif checkpoints(run) or whom == "first":
        os.kill(pids[0 if whom == "first" else -1], number)
    else:  # before it trains, another rank does not heed signals
        os.kill(pids[0], number)
    ended = child.wait(60)
    took = time.monotonic() - sent
    codes = {143 if number is signal.SIGTERM else 130, 143, 0}  # 0: it was at its end; another's is told as SIGTERM
    return [
        unless(ended.code in codes and "Traceback" not in ended.err, f"exit {ended.code}: {ended.err[-300:]}"),
        unless(took < 30, f"took {took:.0f} s"),
        _empties(child),
        *_goes_on(run, reference),
    ]


def _stopped(run: Path, dice: random.Random, seconds: float, reference: Path) -> list[str | None]:
    stop = dice.randrange(1, STEPS)
    first = forks.run("train", *RANKS, f"run_dir={run}", f"training.stop_at={stop}", place=run.parent)
    return [unless(first.code == 0, f"exit {first.code}: {first.err[-300:]}"), *_goes_on(run, reference)]


def _together(home: Path, dice: random.Random, seconds: float, reference: Path) -> list[str | None]:
    """Three runs in the same second, of three ranks each."""
    short = [*RANKS, "training.num_steps=2", "training.sample_every=0"]
    children = [forks.start("train", short, home / f"child_{number}") for number in range(3)]
    ended = [child.wait(120) for child in children]
    folders = {one.out.splitlines()[-1] for one in ended if one.out}
    codes = [one.code for one in ended]
    return [unless(codes == [0] * 3 and len(folders) == 3, f"{codes}, {len(folders)} folders: {ended[0].err[-300:]}")]
