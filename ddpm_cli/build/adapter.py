"""Adapters of a trained network: into a network that is to be trained, out of the weights of one that was, and as a
file of their own, which is of use beside the weights they were trained on."""

from pathlib import Path
from typing import Any

from torch import nn

from ddpm_cli.build.instantiate import make
from ddpm_cli.build.transfer import ENDS
from ddpm_cli.config.stored import check_stored
from ddpm_cli.errors import UserError
from ddpm_cli.formats import single_file
from ddpm_cli.formats.find import find_adapter
from ddpm_cli.formats.header import read_header
from ddpm_cli.formats.opened import content_of
from ddpm_cli.models.lora import LoRA
from ddpm_cli.run_dir.checkpoint import Content, Weights, sha256_of_weights

Config = dict[str, Any]


def build_adapter(cfg: Config) -> LoRA | None:
    """None where the network is trained as it is."""
    node = cfg.get("adapter")
    return make("adapter", node, []) if isinstance(node, dict) else None


def adapt(network: nn.Module, cfg: Config) -> None:
    """Lets the adapters alone be trained, where the configuration has any."""
    adapter = build_adapter(cfg)
    if adapter is not None:
        try:
            adapter.attach(network)
        except ValueError as error:
            raise UserError(str(error)) from error


def merged(weights: Weights, cfg: Config, path: Path | str) -> Weights:
    """Weights for the network without adapters; those that know of none are so already."""
    adapter = build_adapter(cfg)
    try:
        return weights if adapter is None else adapter.merged(weights)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def write_adapter(file: Path, weights: Weights, told: Config) -> Weights:
    """Writes of the weights of a run what it did not take from its base: the adapters, what was trained whole beside
    them, and the ends, which were fitted to the data. Returns the rest.

    told: config, step and data, as a checkpoint holds them.
    """
    adapter = build_adapter(told["config"])
    assert adapter is not None
    own = {name: w for name, w in weights.items() if adapter.trains(name) or name in ENDS}
    rest = {name: w for name, w in weights.items() if name not in own}
    numbers = {"rank": str(adapter.rank), "alpha": f"{adapter.alpha:g}"}
    single_file.write(file, own, told, base=sha256_of_weights(rest), **numbers)
    return rest


def open_adapter(spec: Path | str, base: Weights) -> Content:
    """A file of adapters with the weights they were trained on: what the checkpoint of its run holds. UserError for
    any other weights, with which it would draw something else."""
    file = find_adapter(spec)
    own, told = single_file.read(file)
    rest = {name: w for name, w in base.items() if name not in own and name not in ENDS}
    if sha256_of_weights(rest) != read_header(file)["base"]:
        raise UserError(f"lora={spec} was trained on another model than the one that ckpt names (or on other weights=)")
    content = content_of(rest | own, file, **told)
    check_stored(content["config"], file)
    return content
