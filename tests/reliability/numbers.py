"""R7 and R8: numbers that are not finite, and memory that runs out."""

import math
from pathlib import Path

import torch

from ddpm_cli.run_dir import checkpoint
from ddpm_cli.run_dir.find import checkpoints
from reliability import forks
from reliability.runs import STEPS, Outcome, copied, flattened, state_of, train, trained, unless


def r7_not_finite(place: Path, trials: int) -> Outcome:
    """Never applied, never saved; told with step, rate and checkpoint; or gone back from, with the batch left out."""
    outcome = Outcome()
    cases = [(kind, step) for step in (0, 3, 5, STEPS - 1) for kind in ("image", "loss", "gradient", "infinite")]
    for kind, step in cases[:trials]:
        name = f"{kind}_{step}"
        stopped = train(place, name, hook=_poisoned(kind, {step}))
        told = f"at step {step + 1} (lr" in stopped.err
        saved = checkpoints(place / name)
        known = "no checkpoint yet" if step < 2 else f"step_{step // 2 * 2:08d}.pt"
        outcome.add(
            f"stop: {name}",
            unless(stopped.code == 3 and told and known in stopped.err, f"exit {stopped.code}: {stopped.err[-400:]}"),
            unless(len(stopped.told) <= 3, "more than three lines"),
            unless((place / name / "nonfinite" / f"step_{step + 1:08d}.pt").exists(), "no dump"),
            *map(_not_finite, saved),
        )
        rolled = train(place, f"{name}_back", "training.on_nonfinite=rollback", hook=_poisoned(kind, {step}))
        problems = [unless(rolled.code == 0 and "left out" in rolled.err, f"exit {rolled.code}: {rolled.err[-400:]}")]
        problems += map(_not_finite, checkpoints(place / f"{name}_back"))
        outcome.add(f"rollback: {name}", *problems)
    for mode in ("stop", "rollback"):
        wild = train(place, f"wild_{mode}", "optimizer.lr=1e20", f"training.on_nonfinite={mode}")
        problems = [unless(wild.code == 3 and "(lr" in wild.err, f"exit {wild.code}: {wild.err[-300:]}")]
        outcome.add(f"lr=1e20, {mode}", *problems, *map(_not_finite, checkpoints(place / f"wild_{mode}")))
    outcome.add("rollback, killed and gone on with", _rolled_back_and_killed(place))
    return outcome


def _rolled_back_and_killed(place: Path) -> str | None:
    args = ["training.on_nonfinite=rollback"]
    whole = train(place, "rolled", *args, hook=_poisoned("image", {3}))
    first = train(place, "rolled_twice", *args, "training.stop_at=7", hook=_poisoned("image", {3}))
    again = forks.run("train", f"resume={place / 'rolled_twice'}", place=place)
    if not whole.code == first.code == again.code == 0:
        return f"exits {whole.code}, {first.code}, {again.code}"
    return unless(state_of(place / "rolled") == state_of(place / "rolled_twice"), "the states differ")


def _not_finite(path: Path) -> str | None:
    for name, leaf in flattened(checkpoint.load(path)).items():
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and not leaf.isfinite().all():
            return f"{path.name} holds {name} that is not finite"
        if isinstance(leaf, float) and not math.isfinite(leaf):
            return f"{path.name} holds {name} = {leaf}"
    return None


def _poisoned(kind: str, steps: set[int]) -> forks.Hook:
    def hook() -> None:
        from ddpm_cli.training.step import TrainStep

        real = TrainStep.gradient

        def gradient(self, state):
            t, losses = real(self, state)
            if state.step not in steps:
                return t, losses
            parameter = next(state.network.parameters())
            if kind == "gradient":
                parameter.grad.view(-1)[0] = math.nan
            elif kind == "infinite":
                parameter.grad.view(-1)[0] = math.inf
            elif kind == "loss":  # with a gradient that is finite
                losses.total.data[0] = math.inf
            return t, losses

        TrainStep.gradient = gradient
        if kind == "image":
            from ddpm_cli.data.loading.batches import Batches

            batch = Batches.batch

            def poisoned(self, step, start=0, stop=None):
                images, labels = batch(self, step, start, stop)
                return (images * math.nan if step in steps else images), labels

            Batches.batch = poisoned

    return hook


def r8_memory(place: Path, trials: int) -> Outcome:
    """Out of memory, forward and backward, of a GPU and of the CPU: one line with the batch and two overrides."""
    outcome, reference = Outcome(), trained(place, "reference")
    cuda = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB")
    cpu = RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory")
    cases = [(where, error) for where in ("forward", "backward") for error in (cuda, cpu, MemoryError())][:trials]
    for where, error in cases:
        name = f"{where}_{type(error).__name__}"
        run = copied(reference, f"memory_{name}")
        args = [f"resume={run}", f"training.num_steps={STEPS + 4}", "training.micro_batch_size=4"]
        ended = forks.run("train", *args, place=place, hook=_memoryless(where, error))
        told = " ".join(ended.told)
        outcome.add(
            name,
            unless(ended.code == 3 and len(ended.told) == 1, f"exit {ended.code}: {ended.err[-300:]}"),
            unless("training.batch_size=4" in told and told.count("training.micro_batch_size=") == 2, told),
            unless(state_of(run) == state_of(reference), "the last checkpoint is not as it was"),
        )
        again = forks.run("train", *args[:2], "training.micro_batch_size=2", place=place)
        outcome.add(f"{name}, as told", unless(again.code == 0, again.err[-300:]))
    _probe(place, outcome)
    return outcome


def _memoryless(where: str, error: Exception) -> forks.Hook:
    def fail(*args, **kwargs):
        raise error

    def hook() -> None:
        from ddpm_cli.models.unet import UNet

        if where == "backward":
            torch.Tensor.backward = fail
        else:
            from ddpm_cli.build import trainer

            UNet.forward = fail
            trainer.forward_flops = lambda network, shape: 1

    return hook


def _probe(place: Path, outcome: Outcome) -> None:
    """micro_batch_size=auto: what was found with little memory is used again by a resume that has plenty."""

    def little() -> None:
        from ddpm_cli.training_run import probe

        probe._bytes_per_image = lambda train_step, state: 1.0
        probe.available_bytes = lambda: 2.6

    args = ["training.micro_batch_size=auto", "model.dropout=0"]
    first = train(place, "probed", *args, "training.stop_at=5", hook=little)
    again = forks.run("train", f"resume={place / 'probed'}", place=place)
    content = checkpoint.load(checkpoints(place / "probed")[0])
    same = trained(place, "by_hand", "training.micro_batch_size=2", "model.dropout=0")
    outcome.add(
        "auto",
        unless(first.code == again.code == 0 and content["micro_batch_size"] == 2, f"{content['micro_batch_size']}"),
        unless(state_of(same) == state_of(place / "probed"), "not the run with that size by hand"),
    )
