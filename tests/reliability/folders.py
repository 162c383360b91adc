"""R10 and R11: folders are a run's own, and are known to be writable before anything else is done."""

import os
import time
from pathlib import Path

from reliability import forks
from reliability.runs import TINY, Outcome, trained, unless

NOBODY = 65534


def r10_together(place: Path, trials: int) -> Outcome:
    """Eight runs started at once have eight folders; a folder in use, or of another run, is refused."""
    outcome = Outcome()
    for trial in range(trials):
        home = place / f"together_{trial}"
        children = [forks.Child(lambda home=home: _started(home), home / f"child_{k}") for k in range(8)]
        ended = [child.wait() for child in children]
        folders = {one.out.splitlines()[-1] for one in ended if one.out}
        codes = [one.code for one in ended]
        outcome.add(
            f"round {trial}", unless(codes == [0] * 8 and len(folders) == 8, f"{codes}, {len(folders)} folders")
        )
    _in_use(place, outcome)
    return outcome


def _started(home: Path) -> int:
    """ddpm-train up to its claim of a folder, below one common folder."""
    import sys

    from ddpm_cli import train
    from ddpm_cli.training_run import run as training_run

    os.chdir(home)
    training_run._train = lambda opened, *others: print(opened.run.path) or time.sleep(0.3) or 0.0
    sys.argv = ["ddpm-train", *TINY]
    try:
        train.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def _in_use(place: Path, outcome: Outcome) -> None:
    run = place / "live"

    def slow() -> None:
        from ddpm_cli.training.step import TrainStep

        real = TrainStep.gradient

        def gradient(self, state):
            while state.step == 4 and not (place / "enough").exists():
                time.sleep(0.02)
            return real(self, state)

        TrainStep.gradient = gradient

    child = forks.start("train", [*TINY, f"run_dir={run}"], place / "first", slow)
    while not list(run.glob("checkpoints/*.pt")):
        time.sleep(0.02)
    for args in ([f"resume={run}"], [*TINY, f"run_dir={run}"], [*TINY, f"run_dir={run}", "resume=auto"]):
        ended = forks.run("train", *args, place=place / "second")
        outcome.add(f"into a live run: {args[-1]}", *_refused(ended, 2))
    (place / "enough").touch()
    outcome.add("the live run", unless(child.wait().code == 0, "it was disturbed"))
    for args in (["model.channels=16"], ["schedule=linear"], ["optimizer=sgd"], ["dataset.num_images=20"]):
        ended = forks.run("train", *TINY, f"run_dir={run}", "resume=auto", *args, place=place)
        outcome.add(f"another configuration: {args[0]}", *_refused(ended, 2))


def _refused(ended: forks.Ended, code: int) -> list[str | None]:
    return [
        unless(ended.code == code, f"exit {ended.code}: {ended.err[-300:]}"),
        unless(1 <= len(ended.told) <= 3 and "Traceback" not in ended.err, f"told: {ended.err[-300:]}"),
    ]


def r11_unwritable(place: Path, trials: int) -> Outcome:
    """A folder that cannot be written is told in a line before data is loaded, by a user who is not root too."""
    outcome, ckpt = Outcome(), trained(place, "reference")
    (place / "a_file").touch()
    closed = place / "closed"
    closed.mkdir(mode=0o555)
    cases = {
        "a file in place of the folder": place / "a_file",
        "a folder below a file": place / "a_file" / "run",
        "a closed folder": closed / "run",
        "no such disk": Path("/proc/no/run"),
    }
    for name, path in list(cases.items())[: trials or None]:
        for command, args in (
            ("train", [*TINY, f"run_dir={path}"]),
            ("sample", [f"ckpt={ckpt}", "num_images=1", f"out_dir={path}"]),
        ):
            home = place / f"unwritable_{command}"
            home.mkdir(exist_ok=True)
            home.chmod(0o777)
            ended = forks.run(command, *args, place=home, hook=_as_nobody)
            outcome.add(f"{command}: {name}", *_refused(ended, 2))
    return outcome


def _as_nobody() -> None:
    """Root may write everywhere, so the child becomes somebody who may not."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    def loaded(cfg):
        raise AssertionError("data was loaded before the folder was known to be writable")

    from ddpm_cli.training_run import run as training_run

    training_run.build_data = loaded
