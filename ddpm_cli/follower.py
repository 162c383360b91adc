"""A rank beside the first: builds what rank 0 builds, out of its plan, and makes the steps that it orders.

`python -m ddpm_cli.follower RANK WORLD PORT` is what rank 0 starts.
"""

import json
import logging
import math
import os
import signal
import sys
import threading
from dataclasses import replace

import torch
import torch._dynamo  # seconds, at the first optimiser: while rank 0 is still building
import torch.distributed as dist
import yaml

from ddpm_cli import budget, build, runtime
from ddpm_cli.argv import Place
from ddpm_cli.assembly import assembled, fitted
from ddpm_cli.ending import ending_signals
from ddpm_cli.errors import WorldError
from ddpm_cli.fleet import FAILED, FINGERPRINT, PLAN, READY, launchers_store
from ddpm_cli.training.ranks import GivenUp, Group
from ddpm_cli.training.state import TrainState
from ddpm_cli.training.step import Batch, Trainer

_SIGNALS = ending_signals()


def follow_launched(place: Place) -> float:
    """A rank that torchrun or srun started. It is quiet: rank 0 tells how the run ends."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    logging.getLogger("ddpm_cli").addHandler(logging.NullHandler())
    try:
        _follow(place, launchers_store(place))
    except (WorldError, dist.DistError) as error:
        raise SystemExit(3) from error
    return math.nan


def _follow(place: Place, store: dist.Store) -> None:
    store.wait([PLAN])  # rank 0 prepares the data first
    plan = json.loads(store.get(PLAN))
    if "failed" in plan:
        raise SystemExit(plan["failed"])
    for number in _SIGNALS:  # rank 0 decides
        signal.signal(number, signal.SIG_IGN)
    cfg = yaml.safe_load(plan["config"])
    if cfg["device"] == "cuda":
        cfg["device"] = f"cuda:{place.local % max(1, torch.cuda.device_count())}"
        torch.cuda.set_device(cfg["device"])
    group = Group(place.rank, place.world, store, lambda: WorldError("rank 0 is gone"))
    try:
        trainer, state = _built(cfg, group, store)
    except Exception as error:
        store.set(FAILED, f"rank {place.rank} could not start ({type(error).__name__}: {str(error)[:200]})")
        raise
    store.set(f"{READY}/{place.rank}", "1")
    group.connect(next(state.network.parameters()).device)
    trainer = fitted(trainer, state, cfg, plan["micro_batch_size"])
    while group.receive(state):
        if group.recipe is not None:
            trainer, group.recipe = budget.fitted_to(group.recipe, trainer, state), None
        try:
            trainer(state)
        except GivenUp:
            continue
    dist.destroy_process_group()


def _built(cfg: dict, group: Group, store: dist.Store) -> tuple[Trainer, TrainState]:
    runtime.choose_determinism(cfg["deterministic"])
    data = build.build_data(cfg)
    if data.fingerprint != store.get(FINGERPRINT).decode():
        raise WorldError("it found another data set than rank 0")
    denoiser, machine, loss, timesteps, state = assembled(cfg, data, None)
    if machine.compile:
        denoiser.network.compile()
    trainer = build.build_trainer(cfg, denoiser, data, machine.device, loss, timesteps)
    return replace(trainer, ranks=group, batch=_unless_told_to_end(trainer.batch, group)), state


def _unless_told_to_end(batch: Batch, group: Group) -> Batch:
    def guarded(step: int, start: int, stop: int):
        if group.told_to_end():
            raise GivenUp
        return batch(step, start, stop)

    return guarded


def main() -> None:
    """A rank that rank 0 started: it gets no signals and ends with its parent."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    rank, world, port = map(int, sys.argv[1:])
    code = 0
    try:
        _follow(Place(rank, world, rank, "devices"), dist.TCPStore("127.0.0.1", port, world, False))
    except SystemExit as end:
        code = int(end.code or 0)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        code = 1
    os._exit(code)  # nothing is worth a wait for threads


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
