"""A tiny run with everything on that has state or draws random numbers, and what is compared of runs."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ddpm_cli.run_dir import checkpoint
from reliability import forks

STEPS = 12  # an epoch is 6 steps
# Dropout, flips, accumulation, label dropout, a learned variance, a warm-up and a decay.
TINY = (
    "dataset=shapes dataset.num_images=24 dataset.image_size=8 dataset.channels=1 dataset.flip=true model=unet_small "
    "model.channels=8 model.channel_mult=[1,2] model.blocks_per_level=1 model.patch_size=1 model.dropout=0.2 "
    "variance=learned_range loss=hybrid prediction=epsilon weighting=epsilon schedule.num_timesteps=50 "
    "sampler.num_steps=2 optimizer.warmup_steps=3 optimizer.decay=cosine training.batch_size=4 "
    f"training.micro_batch_size=2 training.num_steps={STEPS} training.log_every=3 training.sample_every=6 "
    "training.num_samples=2 training.checkpoint_every=2 training.keep_best=loss device=cpu"
).split()


@dataclass
class Outcome:
    """What became of a goal's trials."""

    trials: int = 0
    failures: list[str] = field(default_factory=list)
    note: str = ""

    def add(self, trial: str, *problems: str | None) -> None:
        """One trial more; it failed if there is a problem."""
        self.trials += 1
        found = [problem for problem in problems if problem]
        if found:
            self.failures.append(f"{trial}: {'; '.join(found)}")


def unless(condition: object, problem: str) -> str | None:
    return None if condition else problem


def flattened(node: Any, path: str = "") -> dict[str, Any]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else None
    if children is None:
        return {path: node}
    return {name: leaf for key, child in children for name, leaf in flattened(child, f"{path}/{key}").items()}


def digest(content: dict[str, Any]) -> str:
    """A hash of all that a run is: weights, averages, optimiser, scaler, learned modules, step, what it measured."""
    keys = ("network", "emas", "optimizer", "scaler", "learned", "step", "progress")
    total = hashlib.sha256()
    for name, leaf in sorted(flattened({key: content[key] for key in keys}).items()):
        if "per_second" in name:
            continue
        total.update(name.encode())
        if isinstance(leaf, torch.Tensor):
            total.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            total.update(repr(leaf).encode())
    return total.hexdigest()[:16]


def state_of(run: Path) -> str:
    """The hash of the run's newest good checkpoint."""
    return digest(checkpoint.open_checkpoint(run)[1])


def figures(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl without speed and memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.endswith(("per_second", "memory_gib", "tflops", "mfu"))}
        for line in lines
    ]


def train(place: Path, name: str, *args: object, hook: forks.Hook | None = None) -> forks.Ended:
    return forks.run("train", *TINY, f"run_dir={place / name}", *args, place=place, hook=hook)


def trained(place: Path, name: str, *args: object) -> Path:
    """The folder of a run that came to its end, made when first asked for."""
    run = place / name
    if not run.exists():
        ended = train(place, name, *args)
        assert ended.code == 0, ended.err
    return run


def copied(run: Path, name: str) -> Path:
    to = run.parent / name
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(run, to)
    return to


def difference(run: Path, reference: Path) -> str | None:
    """What distinguishes a run from the uninterrupted one."""
    if state_of(run) != state_of(reference):
        return "the state differs"
    if figures(run) != figures(reference):
        return "metrics.jsonl differs"
    names: Sequence[str] = [path.name for path in sorted((reference / "samples").iterdir())]
    if [path.name for path in sorted((run / "samples").iterdir())] != names:
        return "the previews' names differ"
    if any((run / "samples" / name).read_bytes() != (reference / "samples" / name).read_bytes() for name in names):
        return "a preview differs"
    bests = [checkpoint.load(folder / "checkpoints" / "best.pt")["step"] for folder in (run, reference)]
    return unless(bests[0] == bests[1], f"best.pt is of step {bests[0]}, not {bests[1]}")
