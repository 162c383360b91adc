"""What the files of a data set say of it where a configuration leaves that open: asked before anything is built."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpm_cli.data import arrays, audio_folder, image_folder, parquet, published
from ddpm_cli.data.prepare.listing import IMAGES
from ddpm_cli.data.prepare.tables import ENDINGS
from ddpm_cli.errors import UserError

FOUND = ("num_classes", "channels", "image_size", "dtype", "range")  # what may be open
OPEN_VALUES = (None, "each")  # each: of a range, each channel's own
_ASKED: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    f"{module.__name__}.{module.__name__.rpartition('.')[2]}": module.found
    for module in (arrays, audio_folder, image_folder, parquet, published)
}


def kind_of(path: Path) -> str:
    """The data set that reads images from this file or folder, by its name in the configuration."""
    if path.suffix.lower() in (".npy", ".npz"):
        return "arrays"
    files = [path] if path.is_file() else path.rglob("*")
    endings = (file.suffix.lower() for file in files if not file.name.startswith("."))
    first = next((ending for ending in endings if ending in (*ENDINGS, *IMAGES.extensions)), None)
    return "parquet" if first in ENDINGS else "image_folder"


def described(node: Mapping[str, Any], missing: Sequence[str]) -> dict[str, Any]:
    """Values for the keys of a configuration's `dataset` that are missing. UserError where they cannot be known."""
    ask = _ASKED.get(node["_target_"])
    found = {} if ask is None else ask(node)
    if unknown := [key for key in missing if key not in found]:
        raise UserError(f"dataset.{unknown[0]} is null, and {node['_target_']} does not find it; say what it is")
    return {key: found[key] for key in missing}
