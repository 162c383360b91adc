"""A folder of your own images, or an archive of them: one sub-folder a class, or one flat folder."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_cli.data.checks import check_channels, check_num_classes
from ddpm_cli.data.prepare.archives import archives_in, open_archives
from ddpm_cli.data.prepare.cache import Blocks, cache_folder
from ddpm_cli.data.prepare.decoding import Item, decoded
from ddpm_cli.data.prepare.images import prepare_images
from ddpm_cli.data.prepare.listing import IMAGES, File, count_classes, hash_of, of_split
from ddpm_cli.data.prepare.pixels import as_stored
from ddpm_cli.data.prepare.sources import Source, image_source
from ddpm_cli.data.store import Store
from ddpm_cli.media.image_files import decode, sides


def image_folder(
    *,
    root: str,
    cache: str | None,
    split: str = "all",  # what checkpoints mean that know no splits
    channels: int,
    image_size: int | Sequence[int],
    num_classes: int | None,
    dtype: str = "uint8",
    on_error: str,
    max_skipped: float = 0.01,
) -> Store:
    """The images under `root`, prepared into `cache` (null: ROOT/.prepared); a changed file prepares them anew.

    `test` is every sixth image in the order of the set, `train` the rest.
    """
    check_channels(channels)
    path, cache_dir = Path(root), cache_folder(root, cache)
    source = image_source(path, cache_dir)
    files, classes = of_split(source.listing.files, split), source.listing.classes
    labelled = check_num_classes(num_classes, len(classes), what=str(path))
    source.listing.tell(path, IMAGES)
    settings = {"channels": channels, "image_size": image_size, "labelled": labelled, "on_error": on_error}
    settings |= source.key | ({} if dtype == "uint8" else {"dtype": dtype})
    shape = (channels, *sides(image_size))

    def fill() -> Blocks:
        with source.reading(cache_dir) as read:
            items = _items(source, files, partial(_pixels, read, channels, image_size, dtype))
            yield from decoded(
                items, len(files), labelled=labelled, many="images", skip=on_error == "skip", max_skipped=max_skipped
            )

    return prepare_images(
        cache_dir,
        {"set": "image_folder", "files": hash_of(files), **settings},
        name=path.resolve().name,
        num_items=len(files),
        item_shape=shape,
        dtype=dtype,
        class_names=classes if labelled else (),
        fill=fill,
    )


def found(node: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration leaves open."""
    root = Path(node["root"])
    if archives := archives_in(root):
        return {"num_classes": len(open_archives(archives).listing.classes)}
    return {"num_classes": count_classes(root, cache_folder(node["root"], node.get("cache")), IMAGES, None)}


def _items(source: Source, files: Sequence[File], pixels: Any) -> Iterator[Item]:
    return (Item(source.place(file), file.label, partial(pixels, file)) for file in files)


def _pixels(read: Any, channels: int, image_size: int | Sequence[int], dtype: str, file: File) -> np.ndarray:
    return as_stored(decode(read(file), channels, image_size, dtype))
