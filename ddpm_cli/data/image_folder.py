"""A folder of your own images, or an archive of them: one sub-folder a class, or one flat folder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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
from ddpm_cli.errors import UserError
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


def paired_images(dataset: Mapping[str, Any], root: str, cache: str | None, channels: int, count: int) -> Store:
    """Of each of the `count` images of the configuration `dataset`, in their order, the one under `root` whose path is
    the same but for its ending. UserError where one is missing."""
    if not str(dataset.get("_target_")).endswith(".image_folder"):
        raise UserError("condition=image pairs files by their names, which dataset=image_folder has; choose that")
    first, path, cache_dir = Path(dataset["root"]), Path(root), cache_folder(root, cache)
    listing = image_source(first, cache_folder(dataset["root"], dataset.get("cache"))).listing
    files = of_split(listing.files, dataset.get("split", "all"))
    try:
        source = image_source(path, cache_dir)
    except UserError as error:
        raise UserError(str(error).replace("dataset.root", "condition.root")) from error
    there = {_stem(file): file for file in source.listing.files}
    if missing := [file.path for file in files if _stem(file) not in there]:
        raise UserError(f"condition.root: {path} lacks an image named as {missing[0]} ({len(missing)} are missing)")
    if len(files) != count:
        raise UserError("condition=image: an image was left out of the set; repair it and set dataset.on_error=stop")
    pairs = [replace(there[_stem(file)], label=-1) for file in files]
    size, dtype = dataset["image_size"], dataset.get("dtype", "uint8")

    def fill() -> Blocks:
        with source.reading(cache_dir) as read:
            items = _items(source, pairs, partial(_pixels, read, channels, size, dtype))
            yield from decoded(items, count, labelled=False, many="images")

    return prepare_images(
        cache_dir,
        {"set": "paired", "files": hash_of(pairs), "channels": channels, "image_size": size, "dtype": dtype},
        name=path.resolve().name,
        num_items=count,
        item_shape=(channels, *sides(size)),
        dtype=dtype,
        class_names=(),
        fill=fill,
    )


def _stem(file: File) -> str:
    return file.path.rpartition(".")[0]


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
