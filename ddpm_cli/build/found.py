"""What a configuration leaves to files and to the machine: found once when a run begins, then a part of it."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_cli.build.autoencoder import with_autoencoder_described, with_autoencoder_of
from ddpm_cli.build.network_size import OPEN, with_network_sized
from ddpm_cli.config.stored import check_stored
from ddpm_cli.data.conditions import read_vectors
from ddpm_cli.data.described import FOUND, OPEN_VALUES, described
from ddpm_cli.errors import UserError
from ddpm_cli.formats.opened import open_model
from ddpm_cli.system import tree

Config = dict[str, Any]
log = logging.getLogger("ddpm_cli")
_OF_WEIGHTS = ("model", "schedule", "prediction", "variance")  # what weights mean nothing without


def with_values_found(cfg: Config, typed_keys: Sequence[str] = ()) -> Config:
    """The configuration with what it leaves open filled in: what the weights of `init` are of, what the files of a data
    set say of it, the numbers of a schedule that is read from a file, a vector's width, and the size of the network of
    model=auto."""
    if cfg.get("init") is not None:
        cfg = _with_what_weights_are_of(cfg, typed_keys)
    if "path" in cfg["schedule"] and cfg["schedule"]["values"] is None:
        cfg = {**cfg, "schedule": {**cfg["schedule"], "values": read_table(Path(cfg["schedule"]["path"]))}}
    condition = cfg.get("condition") or {}
    if condition.get("width", 0) is None:
        width = read_vectors(Path(condition["path"]), "condition.path").shape[1]
        cfg = {**cfg, "condition": {**condition, "width": width}}
    return with_network_sized(with_autoencoder_described(_with_data_described(cfg)))


def _with_what_weights_are_of(cfg: Config, typed_keys: Sequence[str]) -> Config:
    """Network, schedule, prediction and variance of the model that `init` names, where no other is typed: many a
    network takes the weights of another and draws something else. Single settings that are typed are laid over it."""
    path, content, _ = open_model(cfg["init"], key="init")
    stored = content["config"]
    check_stored(stored, path)
    chosen = set(_OF_WEIGHTS) if "experiment" in typed_keys else {key for key in typed_keys if key in _OF_WEIGHTS}
    taken = [group for group in _OF_WEIGHTS if group not in chosen]
    for group in taken:
        node = dict(stored[group])
        for key in typed_keys:
            if key.startswith(f"{group}."):
                node[key.partition(".")[2]] = tree.get(cfg, key)
        if group == "model":
            node |= {key: cfg["model"][key] for key in ("in_channels", "num_classes")}
        cfg = {**cfg, group: node}
    if not any(key.split(".")[0] in ("condition", "experiment") for key in typed_keys) and stored.get("condition"):
        cfg, taken = {**cfg, "condition": stored["condition"]}, [*taken, "condition"]
    if taken:
        log.info("%s of %s, but for what is typed", ", ".join(taken), path)
    return cfg


def with_values_of(stored: Config, cfg: Config) -> Config:
    """The configuration of a command that goes on with a run, to be compared with the stored one: classes are counted
    again; a network is as large as it was chosen then, and the range of arrays as it was found."""
    known: Config = stored.get("model", {})
    model = {k: known.get(k) if k in OPEN and value is None else value for k, value in cfg["model"].items()}
    data: Config = stored.get("dataset", {})
    same = data.get("_target_") == cfg["dataset"].get("_target_")
    dataset = {
        k: data.get(k) if same and value in OPEN_VALUES and k in FOUND and k != "num_classes" else value
        for k, value in cfg["dataset"].items()
    }
    return with_autoencoder_of(stored, _with_data_described({**cfg, "model": model, "dataset": dataset}))


def _with_data_described(cfg: Config) -> Config:
    """With what the data set's files say for those of its settings that are null, and for what goes by them."""
    node = cfg["dataset"]
    missing = [key for key in FOUND if node.get(key, 0) in OPEN_VALUES]
    if not missing:
        return cfg
    node = {**node, **described(node, missing)}
    model, schedule = dict(cfg["model"]), dict(cfg["schedule"])
    for key, source in (("num_classes", "num_classes"), ("in_channels", "channels")):
        if source in missing:
            model[key] = node[source]
    if schedule.get("image_size", 0) is None:
        schedule["image_size"] = node["image_size"]
    return {**cfg, "dataset": node, "model": model, "schedule": schedule}


def read_table(path: Path) -> list[float]:
    """The numbers for t = 1..T: of a .npy file, or of a text file with one a line (or all in one, with commas)."""
    try:
        numbers = np.asarray(np.load(path, allow_pickle=False) if path.suffix == ".npy" else _rows(path), np.float64)
    except (OSError, EOFError, TypeError, ValueError) as error:
        raise UserError(f"schedule.path: cannot read numbers from {path}: {error}") from error
    if numbers.ndim != 1 or len(numbers) == 0:
        raise UserError(f"schedule.path: {path} must hold one number for each t, has shape {numbers.shape}")
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        row = wrong[0]
        raise UserError(
            f"schedule.path: {path} must hold finite numbers, row {row + 1} has {numbers[row]:g}; correct it"
        )
    return [float(number) for number in numbers]


def _rows(path: Path) -> list[Any]:
    """A number a line, lists of them where a line has several, or the numbers of the only line."""
    lines = [line.replace(",", " ").split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = lines[0] if len(lines) == 1 else [line[0] if len(line) == 1 else line for line in lines]
    if len({len(line) for line in lines}) > 1:
        raise ValueError("its lines hold different amounts of numbers")
    return rows
