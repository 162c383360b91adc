"""R6: SIGTERM, SIGINT, SIGUSR1 and SIGHUP, to the process and to its group, in every phase of a command."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ddpm_cli.run_dir import checkpoint
from reliability import forks
from reliability.pictures import write_pictures
from reliability.runs import TINY, Outcome, difference, trained, unless

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 143, signal.SIGHUP: 129}


def r6_signals(place: Path, trials: int) -> Outcome:
    """Saved, 143, 130 or 129, within 10 s, no child left; going on gives the run that was never stopped."""
    outcome, reference = Outcome(), trained(place, "reference")
    pictures = place / "to_prepare"
    write_pictures(pictures, 40)
    kept = [arg for arg in TINY if not arg.startswith("dataset")]
    folder = ["dataset=image_folder", f"dataset.root={pictures}", "dataset.image_size=8", "dataset.channels=1"]
    sampling = [f"ckpt={reference}", "num_images=6", "batch_size=2", "sampler.num_steps=40", "out_dir=drawn"]
    phases: dict[str, tuple[str, list[str], Callable[[Path], None]]] = {
        "training": ("train", TINY, _slow_steps),
        "saving": ("train", TINY, _slow_saves),
        "previewing": ("train", TINY, _slow_previews),
        "building": ("train", TINY, _slow_building),
        "preparing": ("train", [*kept, *folder], _slow_decoding),
        "sampling": ("sample", sampling, _slow_sampling),
    }
    cases = [(phase, number, group) for number in CODES for group in (False, True) for phase in phases]
    for phase, number, group in cases[:trials]:
        name = f"{phase}_{number.name}_{'group' if group else 'process'}"
        command, args, slow = phases[phase]
        home, run = place / name, place / name / "run"
        home.mkdir()
        more = [f"run_dir={run}"] if command == "train" else []
        child = forks.start(command, [*args, *more], home, lambda home=home, slow=slow: slow(home / "now"))
        there = _wait_for(home / "now")
        time.sleep(0.15)
        sent = time.monotonic()
        child.kill(number, group=group)
        ended = child.wait(20)
        seconds = time.monotonic() - sent
        problems = [
            unless(there, f"never got there: {ended.err[-300:]}"),
            unless(ended.code == CODES[number], f"exit {ended.code}: {ended.err[-300:]}"),
            unless(seconds < 10, f"took {seconds:.1f} s"),
            unless(child.group_is_empty(), "a child is left"),
            unless("Traceback" not in ended.err, f"a traceback: {ended.err[-300:]}"),
            *_gone_on(phase, command, [*args, *more], home, run, reference),
        ]
        outcome.add(name, *problems)
    _second_signal(place, outcome)
    if trials >= len(cases):
        _while_starting(place, outcome)
    return outcome


def _while_starting(place: Path, outcome: Outcome) -> None:
    """A process of its own that gets the signal while Python, Hydra and torch start: nothing is there to be saved."""
    for tenths in (3, 8, 15, 25, 35, 45, 60, 80):
        home = place / f"starting_{tenths}"
        home.mkdir()
        argv = [sys.executable, "-m", "ddpm_cli.train", *TINY, f"run_dir={home / 'run'}"]
        process = subprocess.Popen(argv, cwd=home, stderr=subprocess.PIPE, text=True, start_new_session=True)
        time.sleep(tenths / 10)
        os.killpg(process.pid, signal.SIGTERM)
        sent = time.monotonic()
        _, err = process.communicate(timeout=30)
        took = time.monotonic() - sent
        # Before our code runs, the system's own default ends the process; a shell calls that 143 too.
        ended = process.returncode in (143, -signal.SIGTERM, 0)
        again = forks.run("train", *TINY, f"run_dir={home / 'run'}", "resume=auto", place=home)
        outcome.add(
            f"starting, {tenths / 10} s",
            unless(ended and took < 10 and "Traceback" not in err, f"{process.returncode}, {took:.1f} s: {err[-300:]}"),
            unless(again.code == 0, f"cannot be gone on with: {again.err[-300:]}"),
        )


def _gone_on(phase: str, command: str, args: list[str], home: Path, run: Path, reference: Path) -> Iterator[str | None]:
    if phase in ("training", "saving", "previewing"):
        files = sorted((run / "checkpoints").glob("step_*.pt"))
        yield unless(files, "nothing saved")
    if phase == "preparing":
        yield unless(not list(home.parent.glob("to_prepare/.prepared/*/meta.json")), "a half prepared set")
        yield unless(not list(home.parent.glob("to_prepare/.prepared/.*tmp*")), "temporary files of preparing")
        return
    again = forks.run(command, *args, *(["resume=auto"] if command == "train" else []), place=home)
    yield unless(again.code == 0, f"cannot be gone on with: {again.err[-300:]}")
    if again.code == 0 and command == "train":
        yield difference(run, reference)
    if command == "sample":
        yield unless(len(list(home.glob("drawn/images/*.png"))) == 6, "images are missing")


def _second_signal(place: Path, outcome: Outcome) -> None:
    home = place / "impatient"
    home.mkdir()
    child = forks.start("train", [*TINY, f"run_dir={home / 'run'}"], home, lambda: _slow_saves(home / "now", 0.5))
    _wait_for(home / "now")
    child.kill(signal.SIGTERM)
    time.sleep(0.8)
    sent = time.monotonic()
    child.kill(signal.SIGTERM)
    ended = child.wait(20)
    took = time.monotonic() - sent
    outcome.add("a second signal", unless(ended.code == 143 and took < 1, f"exit {ended.code} after {took:.1f} s"))


def _wait_for(file: Path, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return file.exists()


def _slowed(function: Callable, marker: Path, seconds: float) -> Callable:
    def slow(*args, **kwargs):
        marker.touch()
        time.sleep(seconds)
        return function(*args, **kwargs)

    return slow


def _slow_steps(marker: Path) -> None:
    from ddpm_cli.training.step import TrainStep

    TrainStep.gradient = _slowed(TrainStep.gradient, marker, 0.1)


def _slow_saves(marker: Path, seconds: float = 0.0003) -> None:
    checkpoint._Summed.write = _slowed(checkpoint._Summed.write, marker, seconds)


def _slow_previews(marker: Path) -> None:
    from ddpm_cli.sampling.preview import Preview

    real = Preview.__call__

    def call(self, denoiser):
        hook = denoiser.network.register_forward_pre_hook(_slowed(lambda *_: None, marker, 0.5))
        try:
            return real(self, denoiser)
        finally:
            hook.remove()

    Preview.__call__ = call


def _slow_building(marker: Path) -> None:
    from ddpm_cli.build import trainer

    trainer.build_optimizer = _slowed(trainer.build_optimizer, marker, 30)


def _slow_decoding(marker: Path) -> None:
    from ddpm_cli.data import image_folder

    image_folder.decode = _slowed(image_folder.decode, marker, 0.3)


def _slow_sampling(marker: Path) -> None:
    from ddpm_cli.models.unet import UNet

    UNet.forward = _slowed(UNet.forward, marker, 0.05)
