"""Your own recordings in a folder or an archive: one sub-folder a class, classes in the names, or one flat folder."""

import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_cli.data.checks import check_num_classes
from ddpm_cli.data.prepare.cache import cache_folder, prepare
from ddpm_cli.data.prepare.decoding import Item, decoded
from ddpm_cli.data.prepare.listing import SOUNDS, File, hash_of, of_split
from ddpm_cli.data.prepare.sounds import check_representation, encoded, key_of
from ddpm_cli.data.prepare.sources import classes_found, source_of
from ddpm_cli.data.store import Store
from ddpm_cli.media import sound_files
from ddpm_cli.media.base import DecodeError
from ddpm_cli.media.representation import Representation
from ddpm_cli.media.sounds import Sounds

log = logging.getLogger("ddpm_cli")
_SILENT = "is silent"


def audio_folder(
    *,
    root: str,
    cache: str | None,
    split: str,
    channels: int,
    sample_rate: int,
    num_samples: int,
    long: str,
    normalize: bool,
    label_pattern: str | None,
    num_classes: int | None,
    on_error: str,
    max_skipped: float = 0.01,
    representation: Representation,
) -> Store:
    """The recordings under `root` as mono sounds of one length, prepared into `cache` (null: ROOT/.prepared).

    long: of a recording longer than num_samples, `cut` takes the beginning and `split` all consecutive pieces, the last
    one filled up with silence. `test` is every sixth file, `train` the rest.
    """
    check_representation(representation, channels)
    path, cache_dir = Path(root), cache_folder(root, cache)
    source = source_of(path, cache_dir, SOUNDS, label_pattern)
    files, classes = of_split(source.listing.files, split), source.listing.classes
    labelled = check_num_classes(num_classes, len(classes), what=root)
    source.listing.tell(path, SOUNDS)
    settings = {"sample_rate": sample_rate, "num_samples": num_samples, "long": long, "normalize": normalize}
    settings |= {"labelled": labelled, "on_error": on_error, "label_pattern": label_pattern, **source.key}
    shape = representation.shape(num_samples)
    seconds = num_samples / sample_rate if long == "split" else None
    with source.reading(cache_dir) as read:
        encode = partial(_encoded, read, representation, sample_rate, num_samples, normalize)
        items = [item for file in files for item in _pieces(file, source.place(file), read, seconds, encode)]
        return prepare(
            cache_dir,
            {"set": "audio_folder", "files": hash_of(files), "representation": key_of(representation), **settings},
            name=path.resolve().name,
            num_items=len(items),
            item_shape=shape,
            dtype=np.float16,
            class_names=classes if labelled else (),
            fill=lambda: decoded(
                items, len(items), labelled=labelled, many="sounds", skip=on_error == "skip", max_skipped=max_skipped
            ),
            other=Sounds(representation, num_samples, sample_rate),
        )


def found(node: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration leaves open."""
    cache_dir = cache_folder(node["root"], node.get("cache"))
    return {"num_classes": classes_found(Path(node["root"]), cache_dir, SOUNDS, node.get("label_pattern"))}


def _encoded(
    read: Callable[[File], Any],
    representation: Representation,
    sample_rate: int,
    num_samples: int,
    normalize: bool,
    file: File,
    place: str,
    start: float,
) -> np.ndarray:
    samples = sound_files.read(read(file), sample_rate, num_samples, start=start, normalize=normalize)
    if not samples.any() and start == 0:
        log.warning("%s %s in its first %g s", place, _SILENT, num_samples / sample_rate)
    return encoded(samples, representation)


def _pieces(
    file: File, place: str, read: Callable[[File], Any], seconds: float | None, encode: Callable[..., np.ndarray]
) -> list[Item]:
    """A file as one item, or as many of `seconds` as it holds."""
    count = 1
    if seconds is not None:
        with contextlib.suppress(DecodeError):  # told when it is read
            count = max(1, math.ceil(sound_files.seconds_of(read(file)) / seconds - 1e-6))
    return [Item(place, file.label, partial(encode, file, place, k * (seconds or 0.0))) for k in range(count)]
