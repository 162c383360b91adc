"""The frozen autoencoder of a model of latents: opened from wherever it is kept, and known by a hash of what it is.

A run's configuration holds the path and the hash, its checkpoints the autoencoder itself, so that one file is enough to
draw from.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddpm_cli.build.instantiate import make
from ddpm_cli.config.knobs import rule_for
from ddpm_cli.errors import UserError
from ddpm_cli.formats import autoencoder as folders
from ddpm_cli.formats.opened import open_model
from ddpm_cli.run_dir.checkpoint import Content, Weights, sha256_of_weights

Config = dict[str, Any]
_KEY = "representation.autoencoder"
_MEASURED = ("one", "each")  # scale factors that are found in the data
_OPEN = (None, "stored", *_MEASURED)
_known: dict[str, "Frozen"] = {}  # by hash: whichever file one came from, it is the same


@dataclass(frozen=True)
class Frozen:
    """An autoencoder, and what it was opened from."""

    model: Config  # the node of a configuration
    network: Any
    sha256: str


def is_of_latents(cfg: Mapping[str, Any]) -> bool:
    """Whether the model draws latents."""
    return "autoencoder" in (cfg.get("representation") or {})


def is_autoencoder(cfg: Mapping[str, Any]) -> bool:
    """Whether what is trained is an autoencoder."""
    return bool(cfg["model"]["_target_"] == folders.TARGET)


def network_of(node: Mapping[str, Any]) -> nn.Module:
    """The network of a configuration's `representation`: out of the checkpoint that was opened, or of the file."""
    if node["sha256"] not in _known:
        frozen = _opened(node["autoencoder"])[0]
        if frozen.sha256 != node["sha256"]:
            raise UserError(
                f"{_KEY}={node['autoencoder']} is another autoencoder than that of the model (sha256 "
                f"{frozen.sha256[:8]}, not {node['sha256'][:8]})"
            )
    network: nn.Module = _known[node["sha256"]].network
    return network


def content_of(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds of it: nothing where the model draws something else."""
    if not is_of_latents(cfg):
        return {}
    node = cfg["representation"]
    weights = {name: tensor.cpu() for name, tensor in network_of(node).state_dict().items()}
    return {"autoencoder": {"model": _known[node["sha256"]].model, "weights": weights}}


def remember(content: Content, path: Path) -> None:
    """From here on the autoencoder in a checkpoint serves wherever its hash is named."""
    held: Any = content.get("autoencoder")
    if held is None:
        return
    model, weights = (held.get(key) if isinstance(held, dict) else None for key in ("model", "weights"))
    if not isinstance(model, dict) or not isinstance(weights, dict):
        raise UserError(f"{path}: what it holds of an autoencoder was not written by ddpm-train")
    _frozen(model, weights, path)


def with_autoencoder_described(cfg: Config) -> Config:
    """The configuration with what the autoencoder says of itself: the latents' shape, its hash, and the channels of the
    network that draws them. Their scale is known when there are data."""
    if "sample_rate" in cfg["dataset"] and is_autoencoder(cfg):
        raise UserError("model=autoencoder_kl makes latents of images; choose a dataset of images")
    if not is_of_latents(cfg):
        return cfg
    node, dataset = cfg["representation"], cfg["dataset"]
    frozen, stored = _opened(node["autoencoder"])
    model = frozen.model
    if model["in_channels"] != dataset["channels"]:
        raise UserError(
            f"{_KEY}={node['autoencoder']} is of images of {model['in_channels']} channels, and "
            f"dataset.channels={dataset['channels']}"
        )
    scale = stored if node["scale_factor"] == "stored" else node["scale_factor"]
    told = {"latent_channels": model["latent_channels"], "factor": frozen.network.factor, "sha256": frozen.sha256}
    for key, own in told.items():
        if node[key] not in (None, own):
            raise UserError(f"representation.{key}={node[key]}: the autoencoder has {own}; leave it out")
    told |= {"autoencoder": str(Path(node["autoencoder"]).absolute()), "scale_factor": scale}
    return {
        **cfg,
        "representation": {**node, **told},
        "model": {**cfg["model"], "in_channels": model["latent_channels"]},
    }


def with_autoencoder_of(stored: Config, cfg: Config) -> Config:
    """The configuration of a command that goes on with a run of latents, with what was found of them when it began."""
    if not (is_of_latents(cfg) and is_of_latents(stored)):
        return cfg
    known = stored["representation"]
    node = {key: known.get(key) if value in _OPEN else value for key, value in cfg["representation"].items()}
    return {**cfg, "representation": node, "model": {**cfg["model"], "in_channels": known["latent_channels"]}}


def is_unmeasured(cfg: Mapping[str, Any]) -> bool:
    return is_of_latents(cfg) and cfg["representation"]["scale_factor"] in _MEASURED


def _opened(spec: str) -> tuple[Frozen, float]:
    """The autoencoder that a path names, and its own scaling factor."""
    path = Path(spec).expanduser()
    folder = folders.folder_of(path)
    if folder is not None:
        model, weights, scale = folders.read(folder)
        return _frozen(model, weights, folder), scale
    file, content, _ = open_model(spec, key=_KEY)
    model = content["config"].get("model", {})
    weights = content["emas"].get("ema", content["network"])
    return _frozen(dict(model), weights, file), 1.0


def _frozen(model: Config, weights: Weights, path: Path) -> Frozen:
    """UserError where these are not the weights of an autoencoder."""
    if model.get("_target_") != folders.TARGET:
        raise UserError(f"{_KEY}: {path} is no autoencoder; train one: ddpm-train experiment=autoencoder")
    if not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise UserError(f"{_KEY}: {path} holds weights that are no tensors")
    model = {key: value for key, value in model.items() if key != "num_classes"}
    for key, value in model.items():
        rule = rule_for(f"model.{key}", True if key in ("attention", "quant_conv") else None)
        try:
            rule(value)
        except (ValueError, TypeError, OverflowError):
            raise UserError(f"{path}: its {key} must be {rule.text}, got {value!r:.40}") from None
    sha256 = sha256_of_weights(weights, json.dumps(model, sort_keys=True))
    if sha256 not in _known:
        # Without memory and without random numbers, which are the run's; what is frozen outlives any inference mode.
        with torch.device("meta"):
            network = make("model", model, [], out_channels=2 * model.get("in_channels", 0))
        try:
            with torch.inference_mode(False):
                network.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, assign=True)
        except RuntimeError as error:
            told = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: its weights are not those of this autoencoder: {told}") from None
        _known[sha256] = Frozen(model, network.eval().requires_grad_(False), sha256)
    return _known[sha256]
