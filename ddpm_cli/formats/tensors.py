"""Files of named tensors: safetensors, and what diffusers wrote before."""

import stat
from pathlib import Path
from types import ModuleType

import torch

from ddpm_cli.errors import UserError
from ddpm_cli.run_dir.checkpoint import Damaged, Weights

EXTRA = 'pip install "ddpm_cli[formats]"'


def read_tensors(file: Path) -> Weights:
    """The tensors of a file, on the CPU in float32; Damaged where they cannot be read. Nothing in it is run."""
    try:
        if file.suffix == ".safetensors":
            found = library().load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
        return {str(name): tensor.float() for name, tensor in found.items()}
    except UserError:
        raise
    except Exception as error:  # what a damaged file raises has no common type
        raise Damaged(f"{file} cannot be read: {' '.join(str(error).split())[:200]}") from error


def write_tensors(file: Path, weights: Weights, metadata: dict[str, str]) -> None:
    """`format` says whose tensors they are, which programs that load them ask for."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    file.touch()
    mode = file.stat().st_mode  # as the umask has it: safetensors would let nobody but the owner read
    library().save_file(held, file, {"format": "pt", **metadata})
    file.chmod(stat.S_IMODE(mode))


def library() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError:
        raise UserError(f"files of safetensors need the package of that name: {EXTRA}") from None
    return safetensors.torch
