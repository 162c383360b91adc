"""The image files of a folder and their classes; imports nothing heavy, so a command can count classes at once."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ddpm_cli.errors import UserError

log = logging.getLogger(__name__)

EXTENSIONS = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".avif"),
)
_SPLITS = {"train", "training", "test", "val", "valid", "validation"}


@dataclass(frozen=True)
class ImageFile:
    """One file, and what tells whether it has changed (-1 where it cannot be looked at)."""

    path: str  # relative to the root, with / between folders
    label: int  # index of its class; -1 in a flat folder
    size: int  # bytes
    modified: int  # nanoseconds


def count_classes(root: str | Path, cache: str | Path | None = None) -> int:
    """How many classes a folder of images has; 0 if the images lie in the folder itself. The cache is no class."""
    return len(class_folders(Path(root).expanduser(), None if cache is None else Path(cache).expanduser()))


def class_folders(root: Path, ignore: Path | None = None) -> tuple[str, ...]:
    """Names of the sub-folders that are classes, sorted; none for a flat folder."""
    loose, folders = _top_level(root, ignore)
    empty = [name for name in folders if not any(True for _ in _images_in(root / name, ignore))]
    folders = [name for name in folders if name not in empty]
    if loose and folders:
        raise UserError(
            f"dataset.root: {root} holds loose images ({loose}) and class sub-folders ({folders[0]}); "
            "move the loose images into a sub-folder, or set dataset.root to a folder with only one kind"
        )
    if not loose and not folders:
        raise UserError(f"dataset.root: no image files in {root} ({' '.join(EXTENSIONS)})")
    if folders and empty:
        raise UserError(f"dataset.root: the class folder {root / empty[0]} holds no images; remove it, or fill it")
    return tuple(folders)


def list_images(root: Path, ignore: Path | None = None) -> tuple[list[ImageFile], tuple[str, ...]]:
    """All image files in the order of the data set (by class, then by path), and the names of the classes.

    Hidden files and folders are left out, and `ignore` (the cache), and files whose names are not those of images.
    """
    classes = class_folders(root, ignore)
    if classes and _SPLITS.issuperset(name.lower() for name in classes):
        log.warning("the classes of %s are %s: is dataset.root=%s meant?", root, ", ".join(classes), root / classes[0])
    files = []
    for label, name in enumerate(classes):
        files += [_image_file(entry, root, label) for entry in _images_in(root / name, ignore)]
    if not classes:
        entries = sorted(_entries(root), key=lambda entry: entry.name)
        files = [_image_file(entry, root, -1) for entry in entries if _is_image(entry)]
    return files, classes


def _top_level(root: Path, ignore: Path | None) -> tuple[str | None, list[str]]:
    """A loose image, if there is one, and the names of the sub-folders, sorted."""
    if not root.is_dir():
        trouble = "is no folder" if root.exists() else "does not exist"
        raise UserError(f"dataset.root: {root} {trouble}; set dataset.root=PATH to a folder of images")
    entries = _entries(root)
    folders = sorted(entry.name for entry in entries if entry.is_dir() and not _same(entry, ignore))
    return min((entry.name for entry in entries if _is_image(entry)), default=None), folders


def _images_in(folder: Path, ignore: Path | None, above: tuple[str, ...] = ()) -> Iterator[os.DirEntry[str]]:
    """Images in a folder and all below it, sorted by name; a link that leads back up is not followed."""
    here = os.path.realpath(folder)
    if here in above:
        return
    for entry in sorted(_entries(folder), key=lambda entry: entry.name):
        if _is_image(entry):
            yield entry
        elif entry.is_dir() and not _same(entry, ignore):
            yield from _images_in(Path(entry.path), ignore, (*above, here))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"dataset.root: cannot read the folder {folder} ({error.strerror})") from error


def _is_image(entry: os.DirEntry[str]) -> bool:
    """By its name; a link that leads nowhere is an image too, one that cannot be read."""
    return os.path.splitext(entry.name)[1].lower() in EXTENSIONS and not entry.is_dir()


def _same(entry: os.DirEntry[str], ignore: Path | None) -> bool:
    return ignore is not None and os.path.realpath(entry.path) == os.path.realpath(ignore)


def _image_file(entry: os.DirEntry[str], root: Path, label: int) -> ImageFile:
    path = os.path.relpath(entry.path, root).replace(os.sep, "/")
    try:
        status = entry.stat()
    except OSError:
        return ImageFile(path, label, -1, -1)
    return ImageFile(path, label, status.st_size, status.st_mtime_ns)
