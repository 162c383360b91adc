"""A model in whatever format, read as the Content of a checkpoint: whoever draws or trains need not know of formats."""

from pathlib import Path
from typing import Any

import torch

from ddpm_cli import __version__
from ddpm_cli.errors import UserError
from ddpm_cli.formats import diffusers, single_file, state_dicts
from ddpm_cli.formats.find import diffusers_settings, file_of_ours, find_model, of_flags
from ddpm_cli.formats.flags import read_flags
from ddpm_cli.run_dir.checkpoint import FORMAT, Content, OpenCheckpoint, Weights, open_checkpoint
from ddpm_cli.run_dir.find import is_of_other_program


def open_model(spec: str | Path, *, key: str = "ckpt") -> OpenCheckpoint:
    """What `latest`, a run, a checkpoint, a folder of diffusers or a .safetensors file names, found and read. A model
    of another format has one set of weights, which stands for the averaged and the raw ones alike."""
    path = Path(spec).expanduser()
    if str(spec) == "latest" or not is_of_other_program(path):
        return open_checkpoint(spec, key=key)
    file = find_model(spec, key=key)
    if file_of_ours(file) is not None:
        weights, told = single_file.read(file)
        return OpenCheckpoint(file, content_of(weights, file, **told), [])
    if of_flags(file):
        settings = read_flags(file)
        weights, config = state_dicts.read(file, settings.config)
    else:
        settings = diffusers_settings(path)
        weights, config = diffusers.read_weights(file), settings.config
    data = {"name": file.parent.name, "fingerprint": "", "class_names": settings.class_names}
    return OpenCheckpoint(file, content_of(weights, file, config=config, step=settings.step, data=data), [])


def content_of(weights: Weights, file: Path, *, config: Any, step: Any, data: Any, autoencoder: Any = None) -> Content:
    """The content of a checkpoint that holds one set of weights, and what is said of them."""
    if type(config) is not dict or type(step) is not int or type(data) is not dict:
        raise UserError(f"{file} does not say what its weights are of; it was not written by ddpm-export")
    content: Content = {
        "format": FORMAT,
        "step": step,
        "network": weights,
        "emas": {"ema": weights},
        "config": config,
        "data": data,  # type: ignore[typeddict-item]  # as with a checkpoint of a stranger's, whoever uses it looks
        "version": __version__,
        "torch": str(torch.__version__),
    }
    if autoencoder is not None:
        content["autoencoder"] = autoencoder
    return content
