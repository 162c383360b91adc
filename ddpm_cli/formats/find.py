"""What a path holds that names a trained model: told without torch, since a command line is refused before that."""

from pathlib import Path

from ddpm_cli.errors import UserError
from ddpm_cli.formats.diffusers_config import read_settings
from ddpm_cli.formats.flags import read_flags
from ddpm_cli.formats.header import BASE, OURS, read_header
from ddpm_cli.formats.settings import Settings
from ddpm_cli.run_dir.find import (
    ADAPTER_FILE,
    SINGLE_FILE,
    checkpoints,
    find_checkpoint,
    has_flags,
    is_of_other_program,
)


def find_model(spec: str | Path, *, key: str = "ckpt") -> Path:
    """The file of weights that a path names, or `latest`: of a run or a checkpoint of ours, of a folder of diffusers,
    or a .safetensors file of ours; UserError for what none of our networks can be."""
    path = Path(spec).expanduser()
    if str(spec) == "latest" or not is_of_other_program(path):
        return find_checkpoint(spec, key=key)
    if _adapter_file(path) is not None:
        raise UserError(f"{key}={spec} holds adapters alone; name the model that they were trained on, and lora={spec}")
    if (file := file_of_ours(path)) is not None:
        return file
    return read_flags(path).weights if of_flags(path) else diffusers_settings(path).weights


def find_adapter(spec: str | Path) -> Path:
    """The file of adapters that a path names, or that lies in the folder."""
    path = Path(spec).expanduser()
    file = _adapter_file(path)
    if file is None:
        of_run = checkpoints(path) or (path.suffix == ".pt" and path.is_file())
        remedy = f"; write that of this run: ddpm-export ckpt={spec} format=lora" if of_run else ""
        raise UserError(f"lora={spec}: no file of adapters, as ddpm-export format=lora writes {ADAPTER_FILE}{remedy}")
    return file


def _adapter_file(path: Path) -> Path | None:
    file = path / ADAPTER_FILE if path.is_dir() else path
    return file if file.suffix == ".safetensors" and file.is_file() and BASE in read_header(file) else None


def of_flags(path: Path) -> bool:
    """Whether a file holds weights alone, with the flags of Ho's or OpenAI's program beside it."""
    return path.is_file() and has_flags(path) and "diffusion_pytorch_model" not in path.name


def file_of_ours(path: Path) -> Path | None:
    """The .safetensors file of ours that a path is, or that lies in the folder; None if there is none."""
    file = path / SINGLE_FILE if path.is_dir() else path
    return file if file.suffix == ".safetensors" and file.is_file() and OURS in read_header(file) else None


def diffusers_settings(path: Path) -> Settings:
    """Of the model that a folder of diffusers holds, whether the folder is named, its unet or the file of weights."""
    folder = path if path.is_dir() else path.parent
    if folder.name == "unet" and (folder.parent / "model_index.json").is_file():
        folder = folder.parent
    return read_settings(folder, path if path.is_file() else None)
