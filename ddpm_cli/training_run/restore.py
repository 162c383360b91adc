"""The state that a run starts from, as files hold it."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm_cli.build.adapter import merged
from ddpm_cli.build.autoencoder import is_of_latents, remember
from ddpm_cli.build.found import with_values_of
from ddpm_cli.build.instantiate import name_of
from ddpm_cli.build.load import load_weights
from ddpm_cli.build.model import num_condition_channels
from ddpm_cli.build.transfer import transferred
from ddpm_cli.config.context import Context
from ddpm_cli.config.stored import check_stored
from ddpm_cli.data.store import Store, fingerprint
from ddpm_cli.errors import UserError
from ddpm_cli.formats.opened import open_model
from ddpm_cli.run_dir import resume
from ddpm_cli.run_dir.checkpoint import Content, OpenCheckpoint, open_checkpoint
from ddpm_cli.system.precision import PRECISIONS
from ddpm_cli.training.state import TrainState
from ddpm_cli.training.step import TrainStep

log = logging.getLogger("ddpm_cli")


def gone_on_with(cfg: dict[str, Any], context: Context) -> tuple[OpenCheckpoint, dict[str, Any]]:
    """The checkpoint named, or the newest good one in the folder, and its configuration with what is typed now laid
    over it."""
    named = Path(cfg["resume"]).expanduser()
    resumed = open_checkpoint(named if named.is_file() else context.run_dir, key="resume")
    stored = resumed.content["config"]
    check_stored(stored, resumed.path)
    remember(resumed.content, resumed.path)
    if resumed.content.get("precision") not in PRECISIONS:
        raise UserError(f"{resumed.path} does not say its precision; it cannot be resumed, only used by init=")
    cfg = resume.merge(stored, with_values_of(stored, cfg), context.overrides)
    if changed := resume.changes(stored, cfg, context.overrides):
        log.info("changed since the checkpoint: %s", ", ".join(changed))
    return resumed, cfg


def restored(
    state: TrainState, cfg: dict[str, Any], resumed: OpenCheckpoint | None, class_names: Sequence[str]
) -> None:
    """Into a state at step 0: all of the checkpoint that the run is resumed from, or the weights that `init` names,
    fitted to this network and to the data's classes."""
    if resumed is not None:
        load_state(state, resumed.content, resumed.path)
    elif cfg["init"] is not None:
        _load_averaged(state, cfg, class_names)
    elif name_of(cfg["loss"]) == "Consistency":
        log.warning("loss=consistency tunes a trained model, and nothing is named: init=RUN")


def data_fingerprint(store: Store, train_step: TrainStep) -> str:
    """Of all that a run trains on: its data set, and what lies beside each item."""
    beside = None if train_step.conditions is None else train_step.conditions.fingerprint
    return store.fingerprint if beside is None else fingerprint({"items": store.fingerprint, "beside": beside})


def warn_of_other_data(resumed: OpenCheckpoint, store: Store, train_step: TrainStep) -> None:
    before, now = resumed.content.get("data", {}).get("fingerprint"), data_fingerprint(store, train_step)
    if before != now:
        log.warning("the data set is not the one of the checkpoint (%s, was %s)", now, before)


def load_state(state: TrainState, content: Content, path: Path) -> None:
    """The state of a checkpoint, every entry of it; UserError, with the network as it was, if one does not fit."""
    load_weights(state.network, content["network"], path)
    state.load_state_dict(content)


def _load_averaged(state: TrainState, cfg: dict[str, Any], class_names: Sequence[str]) -> None:
    """Begins with the averaged weights of another run, or with those of another program's model."""
    init = cfg["init"]
    path, content, _ = open_model(init, key="init")
    weights = content["emas"].get("ema")
    if weights is None:
        raise UserError(f"init={init}: {path} holds no averaged weights")
    if is_of_latents(content["config"]) != is_of_latents(cfg):
        theirs, ours = ("latents", "pixels") if is_of_latents(content["config"]) else ("pixels", "latents")
        log.warning("init=%s: its network was trained on %s, and this run is of %s", init, theirs, ours)
    weights = merged(weights, content["config"], path)
    names = content.get("data", {}).get("class_names", ())
    of_conditions = (num_condition_channels(content["config"]), num_condition_channels(cfg))
    weights = transferred(state.network, weights, path, names, class_names, of_conditions)
    load_weights(state.network, weights, path)
    state.network.project_weights()  # type: ignore[operator]
    for ema in state.emas.values():
        ema.network.load_state_dict(weights)
