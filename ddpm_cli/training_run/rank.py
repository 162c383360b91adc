"""A rank beside the first: builds the run that the first tells it, and makes its steps along with it.

Until all have built the run they speak through the keys of a store; from then on each rank goes the same way through
the same loop (training.loop), and whatever only the first knows reaches the others by training.data_parallel.
"""

import json
import logging
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml

from ddpm_cli.build.autoencoder import remember
from ddpm_cli.build.trainer import assembled, build_data, build_parts
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.run_dir import checkpoint
from ddpm_cli.run_dir.checkpoint import Progress
from ddpm_cli.run_dir.find import checkpoints
from ddpm_cli.system.launch_env import Place
from ddpm_cli.system.ranks import RankGone, device_of, launchers_store, speak_into
from ddpm_cli.system.signals import Signals
from ddpm_cli.training.data_parallel import Ranks
from ddpm_cli.training.journal import NoJournal
from ddpm_cli.training.loop import Cadence, Callbacks, Measurement, train
from ddpm_cli.training.state import TrainState
from ddpm_cli.training_run import budget
from ddpm_cli.training_run.probe import joined
from ddpm_cli.training_run.restore import load_state, restored

log = logging.getLogger("ddpm_cli")
# Keys of the store in which the ranks meet. RUN: what to build, as JSON, or how the first ended before it knew (its
# exit code, "failed"); READY/RANK: has built it; FAILED: why a rank cannot go on.
RUN, READY, FAILED = "run", "ready", "failed"
LOGS = "logs"  # of the run's folder: what the ranks beside the first say


def follow_launched(place: Place) -> float:
    """A rank that torchrun or srun started. It is quiet: the first tells how the run ends."""
    Signals("default").start()
    logging.getLogger("ddpm_cli").addHandler(logging.NullHandler())
    try:
        follow(place, launchers_store(place))
    except (WorldError, dist.DistError) as error:
        raise SystemExit(3) from error
    return math.nan


def follow(place: Place, store: dist.Store) -> None:
    """The whole of a rank's work. What ends it but an end of all is told to the first."""
    import torch._dynamo  # noqa: F401  seconds, which the first optimiser would take: here while the first is still busy

    store.wait([RUN])  # the first prepares the data
    told = json.loads(store.get(RUN))
    if "failed" in told:
        raise SystemExit(told["failed"])
    with Signals("flag") as signals:
        try:
            _log_into(Path(told["run"]) / LOGS / f"rank_{place.rank}.log")
            _train(place, store, told, signals)
        except RankGone:
            raise
        except Exception as error:
            log.exception("this rank cannot go on")
            why = str(error) if isinstance(error, (UserError, WorldError)) else f"{type(error).__name__}: {error}"
            told = "; ".join(" ".join(line.split()) for line in why.splitlines() if line.strip())
            store.set(FAILED, f"rank {place.rank} failed ({told[:300]})")
            raise
    dist.destroy_process_group()


def _log_into(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    speak_into(path)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)


def _train(place: Place, store: dist.Store, told: dict[str, Any], signals: Signals) -> None:
    cfg = yaml.safe_load(told["config"])
    cfg["device"] = device_of(place, cfg["device"])
    resumed = checkpoint.open_checkpoint(told["checkpoint"], key="resume") if told["checkpoint"] else None
    if resumed is not None:
        remember(resumed.content, resumed.path)
    data = build_data(cfg)
    if data.fingerprint != told["fingerprint"]:
        raise WorldError("it found another data set than the first rank")
    parts = build_parts(cfg, resumed.content if resumed else {})
    train_step, state = assembled(cfg, parts, data)
    restored(state, cfg, resumed, data.class_names)
    ranks = Ranks(place.rank, place.world, lambda: RankGone("another rank is gone"))
    store.set(f"{READY}/{place.rank}", "1")
    ranks.connect(store, parts.machine.device, Path(told["run"]) / LOGS)
    # From here on in the order of run._measured and run._trained, which the first goes through at the same time.
    train_step = joined(train_step, state, cfg, ranks, told["micro_batch_size"])
    if cfg["budget"] is not None and resumed is None:
        cfg, train_step = budget.followed(train_step, state)
    looks: list[tuple[int, str]] = ranks.first([])
    run, training = Path(told["run"]), cfg["training"]

    def reload(state: TrainState) -> Progress:
        content = checkpoint.load(path := Path(ranks.first("")))
        load_state(state, content, path)
        return content["progress"]

    callbacks = Callbacks(
        sample=lambda state: None,
        save=lambda state, progress, best: None,
        reload=reload,
        dump=lambda step, t, total: run,
        newest=lambda: next(iter(checkpoints(run)), None),
        interrupted=lambda: ranks.any(bool(signals)),
        measurements=[Measurement(every, what, lambda state: {}) for every, what in looks],
    )
    cadence = Cadence(**{field.name: training[field.name] for field in fields(Cadence)})
    progress = resumed.content.get("progress") if resumed else None
    train(
        train_step, state, cadence, NoJournal(), callbacks, progress=progress, on_nonfinite=training["on_nonfinite"]
    )  # fmt: skip
