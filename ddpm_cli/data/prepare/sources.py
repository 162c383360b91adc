"""Where the files of a set lie: in a folder, or in archives."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from ddpm_cli.data.prepare.archives import archives_in, open_archives
from ddpm_cli.data.prepare.listing import IMAGES, File, Listing, list_files


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


def image_source(root: Path, cache_dir: Path) -> Source:
    """The images of a folder, of an archive, or of a folder of archives."""
    if archives := archives_in(root):
        return open_archives(archives, cache_dir)
    return Folder(root, list_files(root, cache_dir, IMAGES))
