"""Images in the rows of Parquet and Arrow files, as Hugging Face's data sets keep them, through pyarrow."""

import io
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, NamedTuple

from ddpm_cli.errors import UserError
from ddpm_cli.media.base import files_below

ENDINGS = (".parquet", ".arrow")
_SPLITS = ("train", "test", "validation", "valid", "val")
_AT_ONCE = 256  # rows


class Row(NamedTuple):
    place: str  # to be told
    number: int  # in the set
    file: Path | IO[bytes]


@dataclass(frozen=True)
class Table:
    """The rows of one file or of several, one after the other, by the files' names."""

    folder: Path
    files: tuple[Path, ...]
    image: str  # names of columns
    label: str | None
    names: tuple[str, ...]  # of the classes, where the schema says them

    @property
    def states(self) -> list[tuple[str, int, int]]:
        """What tells whether a file has changed."""
        return [(path.name, (s := path.stat()).st_size, s.st_mtime_ns) for path in self.files]

    def labels(self) -> list[Any]:
        """Of all rows."""
        assert self.label is not None
        return [value for path in self.files for batch in _batches(path, [self.label]) for value in batch[0]]

    def __len__(self) -> int:
        return sum(map(_num_rows, self.files))

    def rows(self) -> Iterator[Row]:
        number = 0
        for path in self.files:
            for batch in _batches(path, [self.image]):
                for image in batch[0]:
                    yield Row(f"{path}: row {number}", number, self._file(image))
                    number += 1

    @property
    def sequential(self) -> Path | None:
        """A file whose rows cannot be had singly, if there is one: Parquet packs many into one piece."""
        return next((path for path in self.files if path.suffix.lower() != ".arrow"), None)

    def any_row(self) -> Callable[[int], Row]:
        """What gives the row of a number, of Arrow files, which are mapped meanwhile."""
        batches, firsts, total = [], [], 0
        for path in self.files:
            with _opened(path) as file:
                for batch in file:
                    batches.append((path, batch.column(batch.schema.get_field_index(self.image))))
                    firsts.append(total)
                    total += batch.num_rows

        def row(number: int) -> Row:
            found = bisect_right(firsts, number) - 1
            path, column = batches[found]
            return Row(f"{path}: row {number}", number, self._file(column[number - firsts[found]].as_py()))

        return row

    def _file(self, image: Any) -> Path | IO[bytes]:
        """Of bytes, or {bytes, path}."""
        content = image.get("bytes") if isinstance(image, dict) else image
        if content is None and isinstance(image, dict) and image.get("path"):
            return self.folder / str(image["path"])
        return io.BytesIO(content or b"")


def open_table(root: Path, files: str | None, image: str | None, label: str | None) -> Table:
    """The files `root` names or holds (files: a pattern of their names) and the columns that hold images and labels,
    by name, or by what the schema says."""
    if not root.exists():
        raise UserError(
            f"dataset.root: {root} does not exist; set dataset.root=PATH to a .parquet file or their folder"
        )
    found = files_below(root, ENDINGS) if root.is_dir() else [root]
    chosen = [path for path in found if files is None or fnmatchcase(path.name, files)]
    if not chosen:
        named = "no .parquet or .arrow files" if files is None else f"no such files as dataset.files={files}"
        raise UserError(f"dataset.root: {named} in {root}")
    splits = {part for path in chosen for part in _SPLITS if path.name.lower().startswith(part)}
    if len(splits - {"valid", "val"}) > 1:
        first = min(splits, key=_SPLITS.index)
        told = " and ".join(sorted(splits))
        raise UserError(f"dataset.root: {root} holds {told}; name one of them, such as dataset.files='{first}*'")
    schema = _schema(chosen[0])
    said = _features(schema)
    image = _column(
        schema, image, "image", [k for k, f in said.items() if f.get("_type") == "Image"] or _binary(schema)
    )
    classes = [k for k, f in said.items() if f.get("_type") == "ClassLabel"]
    likely = classes or [name for name in ("label", "labels", "class") if name in schema.names]
    label = None if label is None and not likely else _column(schema, label, "label", likely)
    names = tuple(map(str, said.get(label, {}).get("names") or ())) if label is not None else ()
    table = Table(root if root.is_dir() else root.parent, tuple(chosen), image, label, names)
    if len(table) == 0:
        raise UserError(f"dataset.root: {root} holds no rows")
    return table


def _column(schema: Any, asked: str | None, what: str, likely: Sequence[str]) -> str:
    if asked is not None:
        if asked not in schema.names:
            raise UserError(f"dataset.{what}_column={asked}: there are {', '.join(schema.names)}")
        return asked
    if len(likely) != 1:
        raise UserError(f"dataset.{what}_column: say which of {', '.join(likely or schema.names)} holds it")
    return likely[0]


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What Hugging Face's library writes of each column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {k: f for k, f in features.items() if isinstance(f, dict)} if isinstance(features, dict) else {}


def _binary(schema: Any) -> list[str]:
    types = _pyarrow().types

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(field.name == "bytes" for field in kind)
        return types.is_binary(kind) or types.is_large_binary(kind)

    return [field.name for field in schema if holds_bytes(field.type)]


def _schema(path: Path) -> Any:
    with _opened(path) as file:
        return file.schema if path.suffix.lower() == ".arrow" else file.schema_arrow


def _num_rows(path: Path) -> int:
    with _opened(path) as file:
        return sum(batch.num_rows for batch in file) if path.suffix.lower() == ".arrow" else file.metadata.num_rows


def _batches(path: Path, columns: list[str]) -> Iterator[list[list[Any]]]:
    """Some rows at a time: of each column its values."""
    with _opened(path) as file:
        arrow = path.suffix.lower() == ".arrow"
        for batch in file if arrow else file.iter_batches(batch_size=_AT_ONCE, columns=columns):
            for start in range(0, batch.num_rows, _AT_ONCE):
                some = batch.slice(start, _AT_ONCE)
                yield [some.column(some.schema.get_field_index(name)).to_pylist() for name in columns]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """pyarrow's view of a file; UserError where it cannot be read, also later."""
    pyarrow = _pyarrow()
    try:
        if path.suffix.lower() != ".arrow":
            from pyarrow.parquet import ParquetFile

            with ParquetFile(path) as file:
                yield file
        else:
            with pyarrow.memory_map(str(path)) as content, pyarrow.ipc.open_stream(content) as stream:
                yield stream
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"dataset.root: {path} cannot be read ({str(error).splitlines()[0]}); bring it anew") from error


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(
            'Parquet is read by pyarrow, which is not installed: pip install "ddpm_cli[parquet]"'
        ) from error
    return pyarrow
