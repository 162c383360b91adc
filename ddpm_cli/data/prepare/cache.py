"""Decode a data set once, into `CACHE/NAME-KEY/{items.npy,labels.npy,meta.json}`, and map it from there.

The folder is named by what the set was asked for and made from, times of modification among it, so that a changed file
prepares it anew. Its fingerprint is of what came out: the same on every machine, whenever the files were copied there.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ddpm_cli.data.store import FORMAT, Store, fingerprint
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.media.base import Medium
from ddpm_cli.system.files import sync
from ddpm_cli.system.lock import lock
from ddpm_cli.system.progress import progress_bar

log = logging.getLogger(__name__)

# (n, *item_shape) items and their n labels, in the order of the set
Block = tuple[np.ndarray, np.ndarray | None]
Blocks = Generator[Block, None, None]


class CacheError(UserError):
    """The cache cannot be written: the caller may still keep the set in memory."""


def cache_folder(root: str, cache: str | None) -> Path:
    """Where a set's prepared copy is: in its folder, or beside its file, unless it is said."""
    if cache is not None:
        return Path(cache)
    path = Path(root)
    return (path.parent if path.is_file() else path) / ".prepared"


def prepare(
    cache_dir: Path,
    key: dict[str, Any],
    *,
    name: str,
    num_items: int,
    item_shape: tuple[int, ...],
    dtype: np.dtype | type = np.uint8,
    class_names: tuple[str, ...] = (),
    fill: Callable[[], Blocks],
    other: Medium | None = None,
) -> Store:
    """The set that `key` (plain values) describes: mapped if it is prepared already, else prepared from `fill()`.

    `fill` may yield fewer than `num_items`. It is called under a lock: of several runs one prepares, the others wait.
    A set becomes visible only when it is whole and on disk, whatever kills the run that prepares it.
    """
    final = _place(cache_dir, name, key)
    store = load_prepared(final, other)
    if store is not None:  # needs no lock, and no right to write
        return store
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        lock_file = open(cache_dir / f".{final.name}.lock", "a+b")  # noqa: SIM115 closed below
    except OSError as error:
        raise CacheError(
            f"dataset.cache: cannot write to {cache_dir} ({error.strerror}); "
            "set dataset.cache=PATH to a folder that can be written"
        ) from error
    with lock_file:
        alone = lock(lock_file, f"another run prepares {final}")
        store = load_prepared(final, other)  # the run we waited for may have made it
        if store is not None:
            return store
        if alone:  # what killed runs left; without the lock it might be somebody's work in progress
            for leftover in cache_dir.glob(f".{final.name}.tmp-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        header = {"name": name, "key": key, "class_names": list(class_names)}
        _write_set(
            final, header, (num_items, *item_shape), np.dtype(dtype), fill, "images" if other is None else other.many
        )
    store = load_prepared(final, other)
    assert store is not None, f"{final} was just written and does not load"
    return store


def find_prepared(cache_dir: Path, name: str, key: dict[str, Any]) -> Store | None:
    """The set if `prepare` has made it: for those whose size is known once their files are there."""
    return load_prepared(_place(cache_dir, name, key))


def _place(cache_dir: Path, name: str, key: dict[str, Any]) -> Path:
    name = re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "data"
    return cache_dir / f"{name}-{fingerprint(key)}"


def load_prepared(path: Path, other: Medium | None = None) -> Store | None:
    """The prepared set in a folder; None if there is none, or not all of it."""
    try:
        meta = json.loads((path / "meta.json").read_text())
        sizes = {file: os.path.getsize(path / file) for file in meta["bytes"]}
        if meta["format"] != FORMAT or sizes != meta["bytes"]:
            return None
        items = np.load(path / "items.npy", mmap_mode="r")
        labels = np.load(path / "labels.npy") if "labels.npy" in sizes else None
        if list(items.shape) != meta["shape"] or items.dtype != np.dtype(meta["dtype"]):
            return None
        class_names, name, identity = tuple(meta["class_names"]), meta["name"], meta["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):  # ValueError: of json and of numpy
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes into a store
        mapped = torch.from_numpy(items)
    return Store(mapped, None if labels is None else torch.from_numpy(labels), class_names, name, identity, other)


def _write_set(
    final: Path, header: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype, fill: Callable[[], Blocks], many: str
) -> None:
    """Write the set beside its place and move it there; nothing stays if that fails, also on KeyboardInterrupt."""
    needed = math.prod(shape) * dtype.itemsize
    temporary = final.parent / f".{final.name}.tmp-{secrets.token_hex(4)}"
    try:
        if shutil.disk_usage(final.parent).free < needed:
            raise OSError(errno.ENOSPC, "too little space")
        temporary.mkdir()  # not by tempfile, whose folders only their owner may read
        log.info("preparing %d %s in %s", shape[0], many, final)
        with contextlib.closing(fill()) as blocks:  # the decoding stops before what it wrote is removed
            count, labels, content = _write_items(temporary / "items.npy", shape, dtype, blocks)
        if labels:
            np.save(temporary / "labels.npy", np.concatenate(labels))
        meta = {"format": FORMAT, **header, "shape": [count, *shape[1:]], "dtype": dtype.str}
        told = {key: meta[key] for key in ("class_names", "shape", "dtype")}
        meta["fingerprint"] = fingerprint({"content": content, **told})
        meta["bytes"] = {file.name: file.stat().st_size for file in sorted(temporary.glob("*.npy"))}
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1))
        _move(temporary, final)
    except OSError as error:
        raise _disk_error(final, needed, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_items(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, blocks: Iterator[Block]
) -> tuple[int, list[np.ndarray], str]:
    """Write the blocks as one .npy file; returns their number of items, the labels, and the sum of all.

    Plain writes rather than a writable map: a full disk is then an error, where the map would die of SIGBUS.
    """
    count, labels, content = 0, [], hashlib.sha256()
    bar = progress_bar(total=shape[0], unit="item", desc=f"preparing {path.parent.parent.name}")
    with bar, open(path, "wb") as file:
        _write_header(file, shape, dtype)
        for items, item_labels in blocks:
            assert items.shape[1:] == shape[1:] and items.dtype == dtype
            file.write(data := np.ascontiguousarray(items).data)
            content.update(data)
            count += len(items)
            if item_labels is not None:
                labels.append(item_labels.astype(np.int64))
                content.update(labels[-1].tobytes())
            bar.update(len(items))
        file.seek(0)
        _write_header(file, (count, *shape[1:]), dtype)  # numpy leaves room for the first number to change
    return count, labels, content.hexdigest()


def _write_header(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _move(temporary: Path, final: Path) -> None:
    """Put a whole set in its place. Content reaches the disk before its name does, so a power cut leaves no half set.

    By hand, since a folder that holds files cannot be replaced by another, as a file can: a broken set goes first. To
    be killed between the two leaves none, which is prepared again.
    """
    for path in (*temporary.iterdir(), temporary):
        sync(path)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    sync(final.parent)


def _disk_error(final: Path, needed: int, error: OSError) -> WorldError:
    try:
        free = f"{shutil.disk_usage(final.parent).free / 2**20:.0f} MiB"
    except OSError:
        free = "unknown"
    return WorldError(
        f"cannot prepare {final} ({error.strerror or error}): it needs {needed / 2**20:.0f} MiB, free are {free}; "
        "make room or set dataset.cache=PATH to another disk"
    )
