"""What has been found of which image so far: a file for each batch, written whole, so that what was interrupted goes on
where it was."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ddpm_cli.system.files import replacing

Arrays = dict[str, np.ndarray]
PIXELS = "images"  # the array that is kept of some images alone


@dataclass(frozen=True)
class Kept:
    """Arrays of a row an image, by the images' numbers.

    pixels_below: the images of these numbers are kept themselves; of the others, what was found of them.
    """

    folder: Path
    pixels_below: int = 0

    def missing(self, total: int, batch_size: int) -> list[list[int]]:
        """The numbers below `total` of which something is missing, in batches that depend on nothing but batch_size:
        so what was interrupted, or is shared among ranks, asks for the very batches of any other."""
        known = {k for numbers, _ in self._files() for k in numbers}
        batches = (range(start, min(start + batch_size, total)) for start in range(0, total, batch_size))
        return [some for batch in batches if (some := [k for k in batch if k not in known])]

    def add(self, indices: Sequence[int], arrays: Mapping[str, np.ndarray]) -> None:
        """Of the images with these numbers, in ascending order."""
        wanted = sum(k < self.pixels_below for k in indices)
        written = {name: array[:wanted] if name == PIXELS else array for name, array in arrays.items()}
        path = self.folder / f"{indices[0]:08d}.npz"
        with replacing(path) as temporary, open(temporary, "wb") as file:  # numpy adds .npz to other names
            np.savez(file, numbers=np.array(indices), **written)  # type: ignore[arg-type]

    def read(self, total: int) -> Arrays:
        """All that is kept of the numbers below `total`, row k of image k."""
        rows: dict[str, dict[int, np.ndarray]] = {}
        for numbers, file in self._files():
            with np.load(file, allow_pickle=False) as arrays:
                for name in set(arrays.files) - {"numbers"}:  # of pixels there may be fewer rows
                    found = zip(numbers, arrays[name], strict=False)
                    rows.setdefault(name, {}).update((k, row) for k, row in found if k < total)
        return {name: np.stack([found[k] for k in sorted(found)]) for name, found in rows.items()}

    def _files(self) -> Iterable[tuple[list[int], Path]]:
        """The files that hold all they should; a damaged one, or one without pixels that are wanted, does not count."""
        for file in sorted(self.folder.glob("*.npz")):
            try:
                with np.load(file, allow_pickle=False) as arrays:
                    numbers = arrays["numbers"].tolist()
                    pixels = len(arrays[PIXELS]) if PIXELS in arrays.files else 0
            except (OSError, ValueError, KeyError, EOFError, BadZipFile):
                continue
            if pixels >= sum(k < self.pixels_below for k in numbers):
                yield numbers, file
