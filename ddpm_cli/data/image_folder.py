"""A folder of your own images: one sub-folder a class, or one flat folder."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np

from ddpm_cli.data.checks import check_choice, check_images, check_num_classes, folder
from ddpm_cli.data.decode import DecodeError, decode
from ddpm_cli.data.listing import ImageFile, list_images
from ddpm_cli.data.pool import in_order
from ddpm_cli.data.prepare import Block, prepare
from ddpm_cli.data.store import Store
from ddpm_cli.errors import UserError

log = logging.getLogger(__name__)

ONE_SKIPPED_IN = 100  # more unreadable files than this are no accident


def image_folder(
    *, root: str, cache: str | None, channels: int, image_size: int, num_classes: int | None, on_error: str
) -> Store:
    """The images under `root`, prepared into `cache` (null: ROOT/.prepared); a changed file prepares them anew."""
    check_images(channels, image_size)
    check_choice("dataset.on_error", on_error, ("stop", "skip"))
    source = folder("dataset.root", root)
    cache_dir = source / ".prepared" if cache is None else folder("dataset.cache", cache)
    files, classes = list_images(source, ignore=cache_dir)
    labelled = check_num_classes(num_classes, len(classes), what=str(source))
    settings = {"channels": channels, "image_size": image_size, "labelled": labelled, "on_error": on_error}
    return prepare(
        cache_dir,
        {"set": "image_folder", "files": _hash(files), **settings},
        name=source.resolve().name,
        num_items=len(files),
        item_shape=(channels, image_size, image_size),
        class_names=classes if labelled else (),
        fill=lambda: _decoded(files, source, channels, image_size, labelled, on_error == "skip"),
    )


def _hash(files: Sequence[ImageFile]) -> str:
    """Changes with any file's path, class, size or time."""
    return hashlib.sha256(repr([astuple(file) for file in files]).encode()).hexdigest()


def _decoded(
    files: Sequence[ImageFile], root: Path, channels: int, image_size: int, labelled: bool, skip: bool
) -> Iterator[Block]:
    def work(some: Sequence[ImageFile]) -> tuple[list[np.ndarray], list[int], list[str]]:
        pixels, labels, failures = [], [], []
        for file in some:
            try:
                pixels.append(decode(root / file.path, channels, image_size))
                labels.append(file.label)
            except DecodeError as error:
                failures.append(f"{root / file.path}: {error}")
        return pixels, labels, failures

    skipped: list[str] = []
    for pixels, labels, failures in in_order(work, files):
        skipped += failures
        _check_failures(skipped, len(files), skip)
        if pixels:
            yield np.stack(pixels), np.array(labels) if labelled else None
    if skipped:
        log.warning("skipped %d of %d images: %s", len(skipped), len(files), "; ".join(skipped[:10]))


def _check_failures(failures: list[str], num_files: int, skip: bool) -> None:
    most = num_files // ONE_SKIPPED_IN
    rule = f"at most 1% of the images, {most} of these {num_files}"
    named = "; ".join(failures[:3])
    if failures and not skip:
        skipping = f"leave out such files ({rule}) with dataset.on_error=skip"
        why_not = f"dataset.on_error=skip leaves out {rule}"
        remedy = f", or {skipping}" if len(failures) <= most else f" ({why_not})"
        raise UserError(f"{named}\nrepair or remove what cannot be read{remedy}")
    if len(failures) > most:
        raise UserError(
            f"dataset.on_error=skip leaves out {rule}, and {len(failures)} cannot be read (more may follow); repair or "
            f"remove such files:\n{named}"
        )
