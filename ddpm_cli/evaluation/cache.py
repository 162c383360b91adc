"""Arrays that are made once and kept in the data set's cache folder: an extractor's weights, a reference's features."""

import logging
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_cli.data.prepare.cache import cache_folder
from ddpm_cli.data.store import fingerprint
from ddpm_cli.system.files import replacing
from ddpm_cli.system.lock import lock

log = logging.getLogger("ddpm_cli")
Arrays = dict[str, np.ndarray]


def cache_dir_of(dataset: Mapping[str, Any]) -> Path:
    """Where a data set's prepared arrays are, by its configuration; of sets that keep none, where others' are."""
    return cache_folder(dataset.get("root") or "data", dataset.get("cache"))


def kept(cache_dir: Path, name: str, key: dict[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """What `make` gives, a function of `key` (plain values): read from CACHE/NAME-HASH.npz if that is whole, else made
    and written there. Of several commands one makes it, the others wait. Where nothing can be written it is told."""
    path = cache_dir / f"{name}-{fingerprint(key)}.npz"
    found = _read(path)
    if found is not None:
        return found
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        lock_file = open(cache_dir / f".{path.name}.lock", "a+b")  # noqa: SIM115 closed below
    except OSError as error:
        log.warning("%s cannot be written (%s): what is made for it is not kept", path, error.strerror)
        return make()
    with lock_file:
        lock(lock_file, f"another command makes {path}")
        found = _read(path)  # the command we waited for may have made it
        if found is None:
            found = make()
            _write(path, found)
    return found


def _read(path: Path) -> Arrays | None:
    """None where there is none, or not all of it: every array has a checksum."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged (%s): it is made anew", path, error)
        return None


def _write(path: Path, arrays: Arrays) -> None:
    try:
        with replacing(path, durable=True) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # of names, not of allow_pickle
    except OSError as error:
        log.warning("%s cannot be written (%s): it is not kept", path, error.strerror)
