"""A folder of your own images, or an archive of them: one sub-folder a class, or one flat folder."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ddpm_cli.data.checks import check_channels, check_num_classes
from ddpm_cli.data.prepare.cache import Blocks, cache_folder
from ddpm_cli.data.prepare.decoding import Item, decoded
from ddpm_cli.data.prepare.images import images_on_demand, prepare_images
from ddpm_cli.data.prepare.listing import IMAGES, File, hash_of, of_split
from ddpm_cli.data.prepare.pixels import as_stored
from ddpm_cli.data.prepare.sources import Source, classes_found, source_of
from ddpm_cli.data.store import Store
from ddpm_cli.errors import UserError
from ddpm_cli.media.image_files import decode, sides


def image_folder(
    *,
    root: str,
    cache: str | None,
    prepare: bool = True,
    split: str = "all",  # what checkpoints mean that know no splits
    channels: int,
    image_size: int | Sequence[int],
    num_classes: int | None,
    dtype: str = "uint8",
    on_error: str,
    max_skipped: float = 0.01,
) -> Store:
    """The images under `root`, prepared into `cache` (null: ROOT/.prepared); a changed file prepares them anew.
    prepare=False: each is decoded whenever it is asked for.

    `test` is every sixth image in the order of the set, `train` the rest.
    """
    check_channels(channels)
    path, cache_dir = Path(root), cache_folder(root, cache)
    source = source_of(path, cache_dir)
    files, classes = of_split(source.listing.files, split), source.listing.classes
    labelled = check_num_classes(num_classes, len(classes), what=str(path))
    source.listing.tell(path, IMAGES)
    settings = {"channels": channels, "image_size": image_size, "labelled": labelled, "on_error": on_error}
    settings |= source.key | ({} if dtype == "uint8" else {"dtype": dtype})
    shape, named = (channels, *sides(image_size)), classes if labelled else ()
    told: dict[str, Any] = {"name": path.resolve().name, "item_shape": shape, "dtype": dtype, "class_names": named}
    if not prepare:
        return _on_demand(source, files, channels, image_size, on_error, max_skipped, told)

    def fill() -> Blocks:
        with source.reading(cache_dir) as read:
            item = partial(_item, source, read, channels, image_size, dtype)
            yield from decoded(
                map(item, files),
                len(files),
                labelled=labelled,
                many="images",
                skip=on_error == "skip",
                max_skipped=max_skipped,
            )

    key = {"set": "image_folder", "files": hash_of(files), **settings}
    return prepare_images(cache_dir, key, num_items=len(files), fill=fill, **told)


def paired_images(dataset: Mapping[str, Any], root: str, cache: str | None, channels: int, count: int) -> Store:
    """Of each of the `count` images of the configuration `dataset`, in their order, the one under `root` whose path is
    the same but for its ending. UserError where one is missing."""
    if not str(dataset.get("_target_")).endswith(".image_folder"):
        raise UserError("condition=image pairs files by their names, which dataset=image_folder has; choose that")
    first, path, cache_dir = Path(dataset["root"]), Path(root), cache_folder(root, cache)
    listing = source_of(first, cache_folder(dataset["root"], dataset.get("cache"))).listing
    files = of_split(listing.files, dataset.get("split", "all"))
    try:
        source = source_of(path, cache_dir)
    except UserError as error:
        raise UserError(str(error).replace("dataset.root", "condition.root")) from error
    there = {_stem(file): file for file in source.listing.files}
    if missing := [file.path for file in files if _stem(file) not in there]:
        raise UserError(f"condition.root: {path} lacks an image named as {missing[0]} ({len(missing)} are missing)")
    if len(files) != count:
        raise UserError("condition=image: an image was left out of the set; repair it and set dataset.on_error=stop")
    pairs = [replace(there[_stem(file)], label=-1) for file in files]
    size, dtype = dataset["image_size"], dataset.get("dtype", "uint8")
    shape = (channels, *sides(size))
    told: dict[str, Any] = {"name": path.resolve().name, "item_shape": shape, "dtype": dtype, "class_names": ()}
    if not dataset.get("prepare", True):
        return _on_demand(source, pairs, channels, size, "stop", 0, told)

    def fill() -> Blocks:
        with source.reading(cache_dir) as read:
            item = partial(_item, source, read, channels, size, dtype)
            yield from decoded(map(item, pairs), count, labelled=False, many="images")

    key = {"set": "paired", "files": hash_of(pairs), "channels": channels, "image_size": size, "dtype": dtype}
    return prepare_images(cache_dir, key, num_items=count, fill=fill, **told)


def _stem(file: File) -> str:
    return file.path.rpartition(".")[0]


def found(node: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration leaves open."""
    return {"num_classes": classes_found(Path(node["root"]), cache_folder(node["root"], node.get("cache")))}


def _on_demand(
    source: Source,
    files: Sequence[File],
    channels: int,
    image_size: int | Sequence[int],
    on_error: str,
    max_skipped: float,
    told: Mapping[str, Any],
) -> Store:
    if source.sequential is not None:
        raise UserError(
            f"dataset.prepare=false: {source.sequential} can only be read from front to back; unpack it to a .tar"
        )
    held = ExitStack()
    read = held.enter_context(source.reading(Path()))
    item = partial(_item, source, read, channels, image_size, told["dtype"])
    return images_on_demand(
        {"files": hash_of([replace(file, modified=0) for file in files])},
        labels=[file.label for file in files],
        item=lambda row: item(files[row]),
        on_error=on_error,
        max_skipped=max_skipped,
        held=held,
        **told,
    )


def _item(source: Source, read: Any, channels: int, image_size: int | Sequence[int], dtype: str, file: File) -> Item:
    return Item(source.place(file), file.label, lambda: as_stored(decode(read(file), channels, image_size, dtype)))
