"""The image or sound files of a folder and their classes, and what is told of them.

Nothing heavy is imported, so that a command can count classes at once.
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ddpm_cli.data.prepare.classes import values_by_pattern
from ddpm_cli.data.split import in_split
from ddpm_cli.errors import UserError
from ddpm_cli.media import extensions

log = logging.getLogger(__name__)

_OTHER_SETS = {".npy": "arrays", ".npz": "arrays", ".parquet": "parquet", ".arrow": "parquet"}  # by a file's ending
_SPLITS = {"train", "training", "test", "val", "valid", "validation"}
Entry = os.DirEntry[str]


@dataclass(frozen=True)
class Kind:
    """Which files count, and what they are called."""

    one: str
    extensions: tuple[str, ...]


IMAGES, SOUNDS = Kind("image", extensions.IMAGES), Kind("sound", extensions.SOUNDS)


@dataclass(frozen=True)
class File:
    """One file, and what tells whether it has changed (-1 where it cannot be looked at)."""

    path: str  # relative to the root, with / between folders
    label: int  # index of its class; -1 in a flat folder
    size: int  # bytes
    modified: int  # nanoseconds


@dataclass(frozen=True)
class Listing:
    """All that a folder holds, in the order of the data set: by class, then by path."""

    files: list[File]
    classes: tuple[str, ...]
    left_out: Mapping[str, int]  # how many other files there are, by what their names end in
    by_folder: bool = True  # a class is a folder

    def tell(self, root: Path, kind: Kind) -> None:
        """Says what was found, once a process; warns of what is likely to be a mistake."""
        counts = Counter(file.label for file in self.files)
        named = [f"{name} {counts[label]:,}" for label, name in enumerate(self.classes)]
        told = f"{root}: {len(self.files):,} {kind.one}s, "
        told += f"{counted(len(named), 'class', 'classes')}: {shortened(named)}" if named else "no classes"
        others = [f"{count:,} {ending}" for ending, count in sorted(self.left_out.items())]
        tell(logging.INFO, told + (f"; left out: {shortened(others)}" if others else ""))
        if _SPLITS.issuperset(name.lower() for name in self.classes or ("",)):
            meant = root / self.classes[0]
            tell(
                logging.WARNING, f"the classes of {root} are {', '.join(self.classes)}: is dataset.root={meant} meant?"
            )
        deep = list(dict.fromkeys(f.path.rpartition("/")[0] for f in self.files if f.path.count("/") > 1))
        if deep and self.classes and self.by_folder:
            what = f"{root}: {shortened(deep, 3)} lie deeper than the classes, and are part of the class above them"
            alone = len(self.classes) == 1
            tell(logging.WARNING, what + (f"; is dataset.root={root / self.classes[0]} meant?" if alone else ""))


@cache
def tell(level: int, message: str) -> None:
    log.log(level, "%s", message)


def counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def shortened(words: Sequence[str], most: int = 12) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most:,} more" if len(words) > most else "")


def class_folders(root: Path, ignore: Path | None = None, kind: Kind = IMAGES) -> tuple[str, ...]:
    """Names of the sub-folders that are classes, sorted; none for a flat folder. `ignore`, the cache, is no class."""
    _check_root(root, kind)
    entries = _entries(root, ignore)
    loose = next((entry.name for entry in entries if _counts(entry, kind)), None)
    has_files = {entry.name: any(_files_in(Path(entry), ignore, kind)) for entry in entries if entry.is_dir()}
    folders = tuple(name for name, some in has_files.items() if some)
    check_loose(root, loose, folders[0] if folders else None, kind)
    if not loose and not folders:
        other = next((_OTHER_SETS[end] for entry in entries if (end := ending_of(entry.name)) in _OTHER_SETS), None)
        meant = f"; is dataset={other} meant?" if other else ""
        raise UserError(f"dataset.root: no {kind.one} files in {root} ({' '.join(kind.extensions)}){meant}")
    empty = [name for name, some in has_files.items() if not some]
    if folders and empty:  # a class that lost its images would shift the numbers of those after it
        raise UserError(f"dataset.root: the class folder {root / empty[0]} holds no {kind.one}s; remove it, or fill it")
    return folders


def list_files(
    root: Path, ignore: Path | None = None, kind: Kind = IMAGES, label_pattern: str | None = None
) -> Listing:
    """All files of a kind below `root`, and the names of the classes.

    Hidden files and folders are left out, and `ignore` (the cache), and files whose names are not of that kind.
    label_pattern: a regular expression whose group is the class, in the file's path below root; None: the sub-folders
    are the classes.
    """
    others = Counter[str]()
    if label_pattern is not None:
        files, classes = _by_pattern(root, ignore, kind, label_pattern, others)
        return Listing(files, classes, others, by_folder=False)
    classes = class_folders(root, ignore, kind)
    inside = {name: list(_files_in(root / name, ignore, kind, others)) for name in classes}
    loose = _split_by_kind([entry for entry in _entries(root, ignore) if not entry.is_dir()], kind, others)
    if not classes:
        return Listing([_file(entry, root, -1) for entry in loose], classes, others)
    return Listing([_file(entry, root, k) for k, name in enumerate(classes) for entry in inside[name]], classes, others)


def count_classes(root: Path, ignore: Path | None, kind: Kind, label_pattern: str | None) -> int:
    """How many classes list_files would find."""
    if label_pattern is not None:
        return len(_by_pattern(root, ignore, kind, label_pattern, Counter())[1])
    return len(class_folders(root, ignore, kind))


def of_split(files: list[File], split: str) -> list[File]:
    """`test`: every sixth, `train`: the rest, `all`."""
    return [file for file, chosen in zip(files, in_split(len(files), split), strict=True) if chosen]


def hash_of(files: Sequence[File]) -> str:
    """Changes with any file's path, class, size or time."""
    return hashlib.sha256(repr([(f.path, f.label, f.size, f.modified) for f in files]).encode()).hexdigest()


def _by_pattern(
    root: Path, ignore: Path | None, kind: Kind, pattern: str, others: Counter[str]
) -> tuple[list[File], tuple[str, ...]]:
    _check_root(root, kind)
    files = [_file(entry, root, -1) for entry in _files_in(root, ignore, kind, others)]
    if not files:
        raise UserError(f"dataset.root: no {kind.one} files in {root} ({' '.join(kind.extensions)})")
    values = values_by_pattern([file.path for file in files], pattern)
    names = tuple(sorted(set(values)))
    labelled = [replace(file, label=names.index(value)) for file, value in zip(files, values, strict=True)]
    return sorted(labelled, key=lambda f: (f.label, f.path)), names


def check_loose(root: Path, loose: str | None, folder: str | None, kind: Kind) -> None:
    """UserError where some files have a class and some have none."""
    if loose and folder:
        raise UserError(
            f"dataset.root: {root} holds loose {kind.one}s ({loose}) and class sub-folders ({folder}); "
            f"move the loose {kind.one}s into a sub-folder, or set dataset.root to a folder with only one kind"
        )


def _check_root(root: Path, kind: Kind) -> None:
    if not root.is_dir():
        trouble = "is no folder" if root.exists() else "does not exist"
        other = _OTHER_SETS.get(root.suffix.lower())
        remedy = f"choose dataset={other}" if other else f"set dataset.root=PATH to a folder of {kind.one}s"
        raise UserError(f"dataset.root: {root} {trouble}; {remedy}")


def _files_in(
    folder: Path, ignore: Path | None, kind: Kind, others: Counter[str] | None = None, above: tuple[str, ...] = ()
) -> Iterator[Entry]:
    """Files in a folder and all below it, sorted by name; a link that leads back up is not followed. Those of other
    kinds are counted in `others`."""
    here = os.path.realpath(folder)
    if here in above:
        return
    for entry in _entries(folder, ignore):
        if entry.is_dir():
            yield from _files_in(Path(entry), ignore, kind, others, (*above, here))
        else:
            yield from _split_by_kind([entry], kind, others)


def _split_by_kind(entries: Iterable[Entry], kind: Kind, others: Counter[str] | None) -> list[Entry]:
    """Those of the kind; the others are counted."""
    chosen = []
    for entry in entries:
        if _counts(entry, kind):
            chosen.append(entry)
        elif others is not None:
            others[ending_of(entry.name)] += 1
    return chosen


def ending_of(name: str) -> str:
    """What files are counted by that are left out."""
    return os.path.splitext(name)[1].lower() or "without an ending"


def _entries(folder: Path, ignore: Path | None) -> list[Entry]:
    """What lies in a folder, sorted by name, which makes the order of the set the same on every file system."""
    cache = ignore and os.path.realpath(ignore)
    try:
        with os.scandir(folder) as entries:
            seen = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"dataset.root: cannot read the folder {folder} ({error.strerror})") from error
    return [entry for entry in seen if not (cache and entry.is_dir() and os.path.realpath(entry.path) == cache)]


def _counts(entry: Entry, kind: Kind) -> bool:
    """By its name; a link that leads nowhere counts too, as a file that cannot be read."""
    return os.path.splitext(entry.name)[1].lower() in kind.extensions and not entry.is_dir()


def _file(entry: Entry, root: Path, label: int) -> File:
    above = os.path.join(root, "")
    # relpath takes longer than all the rest of a listing
    path = entry.path[len(above) :] if entry.path.startswith(above) else os.path.relpath(entry.path, root)
    try:
        status = entry.stat()
    except OSError:
        return File(path.replace(os.sep, "/"), label, -1, -1)
    return File(path.replace(os.sep, "/"), label, status.st_size, status.st_mtime_ns)
