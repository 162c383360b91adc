"""R4, R5, R12, R17 and R18: files that are damaged, cut off, foreign, not written or too many."""

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ddpm_cli.run_dir import checkpoint
from ddpm_cli.run_dir.find import checkpoints
from ddpm_cli.run_dir.folder import RunDir
from reliability import forks
from reliability.runs import STEPS, TINY, Outcome, copied, difference, digest, state_of, train, trained, unless

NEWEST = f"checkpoints/step_{STEPS:08d}.pt"


def r4_damage(place: Path, trials: int) -> Outcome:
    """Flipped bits and cut-off files are found before anything is loaded; the next good file serves, and is named."""
    outcome, run = Outcome(), copied(trained(place, "reference"), "damaged")
    path = run / NEWEST
    good, before = path.read_bytes(), digest(checkpoint.load(checkpoints(run)[1]))
    dice = random.Random(0)
    for _ in range(trials):
        place_of_bit = dice.randrange(8 * len(good))
        flipped = bytearray(good)
        flipped[place_of_bit // 8] ^= 1 << place_of_bit % 8
        length = dice.choice([0, 1, len(good) - 1, dice.randrange(len(good))])
        for kind, data in (("bit", bytes(flipped)), ("length", good[:length])):
            path.write_bytes(data)
            outcome.add(f"{kind} {place_of_bit if kind == 'bit' else length}", *_detected(run, path, before))
    for trial in range(max(1, trials // 50)):  # by the commands, the damage in another place each
        again = copied(trained(place, "reference"), "damaged_run")
        data = bytearray(good)
        data[dice.randrange(len(good))] ^= 0x10
        (again / NEWEST).write_bytes(data if trial % 2 else good[: len(good) // 2])
        named = forks.run("train", f"resume={again / NEWEST}", place=place)
        sampled = forks.run("sample", f"ckpt={again}", "num_images=1", "sampler.num_steps=2", place=place)
        ended = forks.run("train", f"resume={again}", place=place)
        warnings = [line for line in ended.err.splitlines() if "passed over" in line]
        outcome.add(
            f"by the commands {trial}",
            unless(named.code == 2 and "step_00000012.pt" in named.err and len(named.told) <= 3, "named: " + named.err),
            unless(sampled.code == 0 and "passed over" in sampled.err, "sampling: " + sampled.err[-200:]),
            unless(ended.code == 0 and len(warnings) == 1 and NEWEST in warnings[0], "resuming: " + ended.err[-200:]),
            difference(again, place / "reference") if ended.code == 0 else None,
        )
    return outcome


def _detected(run: Path, path: Path, before: str) -> Iterator[str | None]:
    try:
        checkpoint.load(path)
        yield "loads"
    except checkpoint.Damaged as error:
        yield unless(path.name in str(error), "not named")
    found, content, bad = checkpoint.open_checkpoint(run)
    yield unless(bad == [path] and found != path and digest(content) == before, "no fall-back")


def r5_full_disk(place: Path, trials: int) -> Outcome:
    """A writer that fails at byte k, and a disk that is really full: the old checkpoint stays, one line is told."""
    outcome, run = (
        Outcome(),
        copied(
            trained(
                place,
                "reference",
            ),
            "full",
        ),
    )
    size = (run / NEWEST).stat().st_size
    before = state_of(run)
    for trial in range(trials):
        at = [0, 1, size - 1][trial] if trial < 3 else random.Random(trial).randrange(size)
        args = [f"resume={run}", f"training.num_steps={STEPS + 4}"]
        ended = forks.run("train", *args, place=place, hook=_full_after(at))
        outcome.add(f"byte {at}", *_told_and_unharmed(ended, run, before))
    for event in ("fsync", "replace", "board", "metrics"):
        again = copied(trained(place, "reference"), "failing")
        args = [f"resume={again}", f"training.num_steps={STEPS + 4}"]
        ended = forks.run("train", *args, place=place, hook=_failing(event))
        if event == "board":
            problems = [unless(ended.code == 0 and "going on without" in ended.err, ended.err[-300:])]
            problems += [unless("Traceback" not in ended.err, "a traceback")]
        else:
            problems = list(_told_and_unharmed(ended, again, before, needed=event != "metrics"))
        outcome.add(f"{event} fails", *problems)
    outcome.note = _really_full(place, outcome)
    return outcome


def _told_and_unharmed(ended: forks.Ended, run: Path, before: str, *, needed: bool = True) -> Iterator[str | None]:
    yield unless(ended.code == 3, f"exit {ended.code}: {ended.err[-300:]}")
    yield unless(1 <= len(ended.told) <= 3 and "Traceback" not in ended.err, f"told: {ended.err[-300:]}")
    yield unless(not needed or ("MiB free" in ended.err and "needs" in ended.err), "needed and free are not told")
    yield unless(not list(run.rglob("*.tmp")), "a temporary file is left")
    yield unless(state_of(run) == before, "the old checkpoint is not what is gone on from")


def _full_after(at: int) -> forks.Hook:
    def hook() -> None:
        write = checkpoint._Summed.write

        def limited(self, data):
            written = getattr(self, "written", 0)
            self.written = written + len(data)
            if self.written > at:
                write(self, bytes(data)[: at - written])
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(self, data)

        checkpoint._Summed.write = limited

    return hook


def _failing(event: str) -> forks.Hook:
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    def hook() -> None:
        if event == "board":
            from tensorboard.summary.writer import record_writer

            record_writer.RecordWriter.write = fail
        elif event == "metrics":
            from ddpm_cli.training import journal

            journal.json.dumps = fail
        else:
            real = getattr(os, event)
            setattr(os, event, lambda *a: fail() if "step_" in _name(a[0]) else real(*a))

    return hook


def _name(file: object) -> str:
    return os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else str(file)


def _really_full(place: Path, outcome: Outcome) -> str:
    """On a small file system of memory, where this user may mount one."""
    with _small_disk(place / "small", "3m") as disk:
        if disk is None:
            return "no right to mount a small disk: the failing writer alone"
        ended = forks.run("train", *TINY, f"run_dir={disk / 'run'}", "training.keep_checkpoints=100", place=place)
        told = unless(ended.code == 3 and 1 <= len(ended.told) <= 3, f"exit {ended.code}: {ended.err[-300:]}")
        told = told or unless("Traceback" not in ended.err, f"a traceback: {ended.err[-300:]}")
        files = checkpoints(disk / "run")
        outcome.add("a disk of 3 MiB", told, unless(files and not list(disk.rglob("*.tmp")), "litter, or none left"))
        for path in files:
            checkpoint.load(path)
    return "also on a full tmpfs"


@contextmanager
def _small_disk(folder: Path, size: str) -> Iterator[Path | None]:
    folder.mkdir(exist_ok=True)
    mounted = shutil.which("mount") and not subprocess.call(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], stderr=subprocess.DEVNULL
    )
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.call(["umount", str(folder)])


def r12_foreign(place: Path, trials: int) -> Outcome:
    """Files that are no checkpoints, or of another network, format or state: refused in one message."""
    outcome, run = Outcome(), trained(place, "reference")
    content = checkpoint.load(run / NEWEST)
    content.pop("format")
    wide = {name: torch.zeros(*tensor.shape, 2) for name, tensor in content["network"].items()}
    fewer = dict(list(content["network"].items())[1:])
    other = {**content["config"], "model": {**content["config"]["model"], "channels": 16}}
    optimizer = {**content["optimizer"], "state": {0: {"exp_avg": torch.zeros(3)}}}
    cases = {
        "other shapes": {**content, "network": wide, "emas": {"ema": wide}},
        "missing weights": {**content, "network": fewer, "emas": {"ema": fewer}},
        "another configuration": {**content, "config": other},
        "no optimizer": {k: v for k, v in content.items() if k != "optimizer"},
        "another optimizer's state": {**content, "optimizer": optimizer},
        "no configuration": {**content, "config": {}},
        "a list for a configuration": {**content, "config": [1]},
        "a huge network": {**content, "config": {**other, "model": {**other["model"], "channels": 10**9}}},
        "newer": {**content, "format": checkpoint.FORMAT + 1},
        "state dict": None, "random tensors": None, "empty": None, "folder": None, "text": None, "safetensors": None,
    }  # fmt: skip
    for name, forged in list(cases.items())[: trials or None]:
        path = copied(run, "foreign") / "checkpoints" / "step_00000013.pt"
        _forge(path, name, forged, content)
        for command, args in (("train", [f"resume={path}"]), ("sample", [f"ckpt={path}", "num_images=1"])):
            if command == "sample" and "optimizer" in name:
                continue
            ended = forks.run(command, *args, place=place)
            outcome.add(f"{command}: {name}", *refused(ended))
    return outcome


def refused(ended: forks.Ended) -> Iterator[str | None]:
    yield unless(ended.code == 2, f"exit {ended.code}: {ended.err[-400:]}")
    yield unless(1 <= len(ended.told) <= 3 and "Traceback" not in ended.err, f"told: {ended.err[-400:]}")


def _forge(path: Path, name: str, forged: dict | None, content: dict) -> None:
    if forged is not None:
        checkpoint.save(path, forged)
    elif name == "folder":
        path.mkdir()
    elif name == "safetensors":
        from safetensors.torch import save_file

        save_file({"w": torch.ones(2)}, path)
    elif name in ("empty", "text"):
        path.write_text("" if name == "empty" else "hello")
    else:
        torch.save(content["network"] if name == "state dict" else torch.ones(3), path)


def r17_retention(place: Path, trials: int) -> Outcome:
    """keep_checkpoints never takes the newest good one, whatever lies beside it; what dead runs left is removed."""
    outcome = Outcome()
    content = {"step": 0, "config": {}, "network": {"w": torch.ones(3)}, "emas": {}}
    for trial in range(trials):
        dice, folder = random.Random(trial), place / f"retention_{trial}"
        run = RunDir.create(folder)
        keep, steps = dice.randrange(1, 4), sorted(dice.sample(range(1, 100), dice.randrange(1, 8)))
        problems: list[str | None] = []
        (run.checkpoints / ".step_00000001.pt.99.tmp").touch()
        for step in steps:
            run.save_checkpoint(step, {**content, "step": step}, keep, best=dice.random() < 0.3)
            problems.append(unless(checkpoint.open_checkpoint(folder).content["step"] == step, f"lost {step}"))
            if dice.random() < 0.3:  # a crash between writing and pruning leaves one too many; a disk damages one
                victim = dice.choice(sorted(run.checkpoints.glob("step_*.pt")))
                shutil.copy(victim, run.checkpoints / f"step_{step - 1:08d}.pt")
        problems.append(unless(len(list(run.checkpoints.glob("step_*.pt"))) <= keep + 1, "too many"))
        run.close()
        RunDir.open(folder).close()
        problems.append(unless(not list(run.checkpoints.glob(".*")), "temporary files stay"))
        outcome.add(f"folder {trial}", *problems)
    ended = train(place, "stubborn", "training.keep_checkpoints=1", hook=_nothing_can_be_removed)
    outcome.add("unlink fails", unless(ended.code == 0 and "could not remove" in ended.err, ended.err[-300:]))
    return outcome


def _nothing_can_be_removed() -> None:
    real = Path.unlink

    def unlink(self, missing_ok=False):
        if self.name.startswith("step_"):
            raise OSError(errno.EPERM, "Operation not permitted")
        real(self, missing_ok)

    Path.unlink = unlink
