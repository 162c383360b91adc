"""Images in Parquet files, or in a folder that Hugging Face's `save_to_disk` wrote."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_cli.data.checks import check_channels, check_num_classes
from ddpm_cli.data.prepare.cache import Blocks, cache_folder
from ddpm_cli.data.prepare.classes import classes_of
from ddpm_cli.data.prepare.decoding import Item, decoded
from ddpm_cli.data.prepare.images import images_on_demand, prepare_images
from ddpm_cli.data.prepare.listing import counted, tell
from ddpm_cli.data.prepare.pixels import as_stored
from ddpm_cli.data.prepare.tables import Row, Table, open_table
from ddpm_cli.data.split import in_split
from ddpm_cli.data.store import Store, fingerprint
from ddpm_cli.errors import UserError
from ddpm_cli.media.image_files import decode, sides


def parquet(
    *,
    root: str,
    cache: str | None,
    prepare: bool = True,
    files: str | None,
    image_column: str | None,
    label_column: str | None,
    split: str,
    channels: int,
    image_size: int | Sequence[int],
    num_classes: int | None,
    dtype: str,
    on_error: str,
    max_skipped: float,
) -> Store:
    """The images of a file, or of a folder's files, in the order of the rows, prepared into `cache` (null: ROOT's
    .prepared). prepare=False: each is decoded whenever it is asked for, of Arrow files. `test` is every sixth row,
    `train` the rest."""
    check_channels(channels)
    table, cache_dir = open_table(Path(root), files, image_column, label_column), cache_folder(root, cache)
    total = len(table)
    labels, classes = _classes(table) if num_classes != 0 else (None, ())
    labelled = check_num_classes(num_classes, len(classes), what=root) and labels is not None
    told = f"{root}: {total:,} rows, images in {table.image}, "
    tell(
        logging.INFO,
        told + (f"{counted(len(classes), 'class', 'classes')} in {table.label}" if labels else "no labels"),
    )
    chosen = in_split(total, split)
    label_of = (lambda number: -1) if labels is None else labels.__getitem__
    named = classes if labelled else ()
    what: dict[str, Any] = {"name": Path(root).resolve().stem, "dtype": dtype, "class_names": named}
    what |= {"item_shape": (channels, *sides(image_size))}

    def item(row: Row) -> Item:
        return Item(row.place, label_of(row.number), lambda: as_stored(decode(row.file, channels, image_size, dtype)))

    if not prepare:
        _check_any_row(table)
        any_row, numbers = table.any_row(), np.flatnonzero(chosen)
        return images_on_demand(
            {"files": [state[:2] for state in table.states], "columns": (table.image, table.label), "split": split},
            labels=[label_of(number) for number in numbers],
            item=lambda row: item(any_row(int(numbers[row]))),
            on_error=on_error,
            max_skipped=max_skipped,
            **what,
        )

    def fill() -> Blocks:
        rows, skip = (item(row) for row in table.rows() if chosen[row.number]), on_error == "skip"
        return decoded(rows, sum(chosen), labelled=labelled, many="images", skip=skip, max_skipped=max_skipped)

    key = {"set": "parquet", "files": table.states, "image": table.image, "split": split, "channels": channels}
    key |= {"image_size": image_size, "dtype": dtype, "on_error": on_error}
    key |= {"labels": fingerprint({"labels": labels, "names": classes}) if labelled else None}
    return prepare_images(cache_dir, key, num_items=sum(chosen), fill=fill, **what)


def _check_any_row(table: Table) -> None:
    if table.sequential is not None:
        raise UserError(
            f"dataset.prepare=false: the rows of {table.sequential} cannot be had one by one, as those of .arrow files "
            "can; convert it (Hugging Face's save_to_disk writes them)"
        )


def found(node: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration leaves open."""
    table = open_table(Path(node["root"]), node["files"], node["image_column"], node["label_column"])
    return {"num_classes": len(_classes(table)[1])}


def _classes(table: Table) -> tuple[list[int] | None, tuple[str, ...]]:
    """The label of each row, and the names of the classes."""
    if table.label is None:
        return None, ()
    values = table.labels()
    if (wrong := next((k for k, v in enumerate(values) if type(v) not in (int, str)), None)) is not None:
        raise UserError(
            f"dataset.label_column={table.label}: row {wrong} holds {values[wrong]!r}, no class; "
            "dataset.num_classes=0 leaves the labels out"
        )
    labels, names = classes_of(values)
    if table.names and isinstance(values[0], int):
        if len(names) > len(table.names):
            raise UserError(
                f"dataset.label_column={table.label}: {len(names) - 1} is none of {len(table.names)} classes"
            )
        names = table.names
    return labels, names
