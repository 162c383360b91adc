"""One file of safetensors: the weights by their names, and in its metadata the configuration that they are of."""

import json
from pathlib import Path
from typing import Any

from ddpm_cli.errors import UserError
from ddpm_cli.formats.header import OURS, read_header
from ddpm_cli.formats.tensors import read_tensors, write_tensors
from ddpm_cli.run_dir.checkpoint import Weights

VERSION = 2  # 1 knows of no autoencoder, and is still what is written where there is none
_BESIDE = "autoencoder."  # before the names of its weights
# What was said of one invocation or one machine; a model is given to others.
_PRIVATE = {"run_dir", "resume", "init", "trust", "name", "threads", "device", "devices", "dry_run", "profile"}


def write(file: Path, weights: Weights, told: dict[str, Any], **more: str) -> None:
    """told: config, step and data, and an autoencoder where there is one, as a checkpoint holds them. more: further
    entries of the metadata."""
    version, beside = 1, told.get("autoencoder")
    if beside is not None:
        version, told = VERSION, {**told, "autoencoder": beside["model"]}
        weights = {**weights, **{_BESIDE + name: tensor for name, tensor in beside["weights"].items()}}
    write_tensors(file, weights, {OURS: json.dumps({"version": version, **told}), **more})


def read(file: Path) -> tuple[Weights, dict[str, Any]]:
    """The weights, and what was told of them, as write() has it."""
    try:
        told = json.loads(read_header(file)[OURS])
        version, parts = told.pop("version"), {key: told[key] for key in ("config", "step", "data")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: its metadata cannot be read ({type(error).__name__}: {error})") from error
    if version not in range(1, VERSION + 1):
        raise UserError(f"{file} has version {version}, this program reads {VERSION}; use the program that wrote it")
    weights = read_tensors(file)
    if "autoencoder" in told:
        beside = {name: weights.pop(name) for name in list(weights) if name.startswith(_BESIDE)}
        held = {name.removeprefix(_BESIDE): tensor for name, tensor in beside.items()}
        parts["autoencoder"] = {"model": told["autoencoder"], "weights": held}
    return weights, parts


def public(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without what was of one invocation alone."""
    return {key: value for key, value in config.items() if key not in _PRIVATE}
