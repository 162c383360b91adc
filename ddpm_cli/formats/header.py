"""The head of a .safetensors file, which says what is in it: read without torch, and without the library."""

import json
from pathlib import Path
from typing import Any

from ddpm_cli.errors import UserError

OURS = "ddpm_cli"  # the entry of its metadata that makes a file one of ours
BASE = "base"  # and one that holds adapters alone: the sum of the weights that they were trained on
_MOST = 100 * 2**20  # bytes, as the library has it


def read_header(file: Path) -> dict[str, str]:
    """The metadata of a .safetensors file; UserError where it is none."""
    try:
        with open(file, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header: Any = json.loads(stream.read(size)) if size <= _MOST else None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{file} is no file of safetensors, or is damaged")
    metadata = header.get("__metadata__", {})
    return metadata if isinstance(metadata, dict) else {}
