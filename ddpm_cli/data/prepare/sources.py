"""Where the files of a set lie: in a folder, or in archives."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from ddpm_cli.data.prepare.archives import archives_in, open_archives
from ddpm_cli.data.prepare.listing import IMAGES, File, Kind, Listing, count_classes, list_files


class Source(Protocol):
    """Files that are listed, and can be read."""

    @property
    def listing(self) -> Listing: ...

    @property
    def key(self) -> dict[str, Any]:
        """What of it tells a set from others beside its files, as plain values."""
        ...

    @property
    def sequential(self) -> Path | None:
        """An archive whose files can be had from front to back alone, if there is one."""
        ...

    def place(self, file: File) -> str:
        """Where a file is, to be told."""
        ...

    def reading(self, scratch: Path) -> Any:
        """A context that gives a function from a file to its path or an open file of its bytes, to be called by any
        thread; DecodeError where it cannot be had. scratch: a folder for what is kept meanwhile."""
        ...


@dataclass(frozen=True)
class Folder:
    """A Source."""

    root: Path
    listing: Listing
    sequential: Path | None = None

    @property
    def key(self) -> dict[str, Any]:
        return {}

    def place(self, file: File) -> str:
        return str(self.root / file.path)

    @contextmanager
    def reading(self, scratch: Path) -> Iterator[Callable[[File], Path | IO[bytes]]]:
        yield lambda file: self.root / file.path


def source_of(root: Path, cache_dir: Path, kind: Kind = IMAGES, label_pattern: str | None = None) -> Source:
    """The files of a kind in a folder, in an archive, or in a folder of archives. label_pattern: see list_files."""
    if archives := archives_in(root, kind):
        return open_archives(archives, cache_dir, kind, label_pattern)
    return Folder(root, list_files(root, cache_dir, kind, label_pattern))


def classes_found(root: Path, cache_dir: Path, kind: Kind = IMAGES, label_pattern: str | None = None) -> int:
    """How many classes the source has."""
    if archives_in(root, kind):
        return len(source_of(root, cache_dir, kind, label_pattern).listing.classes)
    return count_classes(root, cache_dir, kind, label_pattern)
