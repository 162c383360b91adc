"""The Free Spoken Digit Dataset (Jackson et al., CC BY-SA 4.0): English digits at 8 kHz, DIGIT_SPEAKER_NUMBER.wav."""

import io
import logging
import re
import tarfile
import zlib
from collections.abc import Iterator
from functools import cache as cached
from functools import partial
from pathlib import Path

import numpy as np

from ddpm_cli.data.checks import check_num_classes
from ddpm_cli.data.prepare.cache import cache_folder, prepare
from ddpm_cli.data.prepare.decoding import Item, decoded
from ddpm_cli.data.prepare.download import bring
from ddpm_cli.data.prepare.sounds import check_representation, encoded, key_of
from ddpm_cli.data.store import Store
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.media import sound_files
from ddpm_cli.media.representation import Representation
from ddpm_cli.media.sounds import Sounds
from ddpm_cli.system.files import sha256_of

log = logging.getLogger("ddpm_cli")

FILE = "free-spoken-digit-dataset-1.0.9.tar.gz"
URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/v1.0.9.tar.gz"
SHA256 = "8bc44cde129d505cbbb6b365c09f80c663f2aa77578afc634e6141a2f87100c0"
# Where the recordings may lie below dataset.root: unpacked, or in an archive.
_UNPACKED = (
    "*.wav",
    "train/*.wav",
    "recordings/*.wav",
    "free-spoken-digit-dataset*/recordings/*.wav",
    "fsdd*/**/*.wav",
)
_ARCHIVES = ("free-spoken-digit-dataset*.tar.gz", "fsdd*.tar.gz")
_NAME = re.compile(r"(\d)_(\w+)_(\d+)\.wav")


def fsdd(
    *,
    root: str,
    cache: str | None,
    download: bool,
    split: str,
    held_out: int,
    channels: int,
    sample_rate: int,
    num_samples: int,
    normalize: bool,
    num_classes: int | None,
    representation: Representation,
) -> Store:
    """The recordings that lie in `root`, unpacked or in their archive, which is downloaded otherwise.

    `test` are those numbered below `held_out`, of each digit and speaker (5: as published), `train` the others.
    """
    check_representation(representation, channels)
    labelled = check_num_classes(num_classes, 10, what="fsdd")
    place = _found(Path(root), download)
    names = [name for name in _names(place) if split == "all" or (_number(name) < held_out) == (split == "test")]
    if not names:
        which = f"below {held_out}" if split == "test" else f"of {held_out} and above"
        raise UserError(f"dataset.split={split}: {place} holds no recordings numbered {which}; change dataset.held_out")
    settings = {"sample_rate": sample_rate, "num_samples": num_samples, "normalize": normalize, "labelled": labelled}
    content = sha256_of(place) if place.is_file() else [(place / name).stat().st_mtime_ns for name in names]
    key = {"set": "fsdd", "names": names, "content": content, "representation": key_of(representation), **settings}

    def sound(name: str) -> np.ndarray:
        samples = sound_files.read(_opened(place, name), sample_rate, num_samples, normalize=normalize)
        return encoded(samples, representation)

    items = [Item(f"{place}: {name}", int(Path(name).name[0]), partial(sound, name)) for name in names]
    return prepare(
        cache_folder(root, cache),
        key,
        name=f"fsdd-{split}",
        num_items=len(items),
        item_shape=representation.shape(num_samples),
        dtype=np.float16,
        class_names=tuple("0123456789") if labelled else (),
        fill=lambda: decoded(items, len(items), labelled=labelled, many="sounds"),
        other=Sounds(representation, num_samples, sample_rate),
    )


def _found(root: Path, download: bool) -> Path:
    """The folder that holds the recordings, or the archive."""
    for pattern in _UNPACKED:
        for path in root.glob(pattern):
            if _NAME.fullmatch(path.name):
                return path.parent
    archives = [path for pattern in _ARCHIVES for path in sorted(root.glob(pattern))]
    return archives[0] if archives else _downloaded(root / FILE, download)


def _downloaded(path: Path, download: bool) -> Path:
    put = f"put {FILE} (from {URL}) into {path.parent.absolute()} and run again"
    if not download:
        raise UserError(
            f"dataset.root: fsdd is not in {path.parent}\n{put}, or set dataset.download=true or dataset.root=PATH"
        )
    try:
        bring(path, URL, SHA256)
    except WorldError as error:
        raise WorldError(
            f"fsdd is not in {path.parent}: {put}, or set dataset.root=PATH\nthe download failed: {error}"
        ) from error
    return path


def _names(place: Path) -> list[str]:
    """Of all recordings, sorted: by digit, speaker and number."""
    names = list(_recordings(place)) if place.is_file() else [path.name for path in place.iterdir()]
    return sorted((name for name in names if _NAME.fullmatch(Path(name).name)), key=_order)


def _order(name: str) -> tuple[str, str, int]:
    digit, speaker, number = _NAME.fullmatch(Path(name).name).groups()  # type: ignore[union-attr]
    return digit, speaker, int(number)


def _number(name: str) -> int:
    return _order(name)[2]


def _opened(place: Path, name: str) -> Path | io.BytesIO:
    return io.BytesIO(_recordings(place)[name]) if place.is_file() else place / name


def _recordings(archive: Path) -> dict[str, bytes]:
    """All of an archive: 10 MB, which can only be read from front to back."""
    return _read_once(archive, archive.stat().st_mtime_ns)


@cached
def _read_once(archive: Path, modified: int) -> dict[str, bytes]:
    try:
        return dict(_read(archive))
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"dataset.root: {archive} cannot be unpacked ({error}); remove it, or bring it anew") from error


def _read(archive: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive) as files:
        for member in files:
            if member.isfile() and _NAME.fullmatch(Path(member.name).name):
                opened = files.extractfile(member)
                assert opened is not None
                yield member.name, opened.read()
