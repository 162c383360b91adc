"""Decode a data set once, into `CACHE/NAME-FINGERPRINT/{items.npy,labels.npy,meta.json}`, and map it from there."""

import errno
import json
import logging
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ddpm_cli.data.fingerprint import FORMAT, fingerprint
from ddpm_cli.data.lock import locked
from ddpm_cli.data.store import Store
from ddpm_cli.errors import UserError, WorldError

log = logging.getLogger(__name__)

# (n, *item_shape) items and their n labels, in the order of the set
Block = tuple[np.ndarray, np.ndarray | None]


class CacheError(UserError):
    """The cache cannot be written: the caller may still keep the set in memory."""


def prepare(
    cache_dir: Path,
    key: dict[str, Any],
    *,
    name: str,
    num_items: int,
    item_shape: tuple[int, ...],
    dtype: np.dtype | type = np.uint8,
    class_names: tuple[str, ...] = (),
    fill: Callable[[], Iterator[Block]],
) -> Store:
    """The set that `key` (plain values) describes: mapped if it is prepared already, else prepared from `fill()`.

    `fill` may yield fewer than `num_items`. It is called under a lock: of several runs one prepares, the others wait.
    A set becomes visible only when it is whole and on disk, whatever kills the run that prepares it.
    """
    name = re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "data"
    identity = fingerprint(key)
    final = cache_dir / f"{name}-{identity}"
    store = load_prepared(final)
    if store is not None:  # needs no lock, and no right to write
        return store
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        lock = open(cache_dir / f".{final.name}.lock", "a+b")  # noqa: SIM115 (closed by the lock)
    except OSError as error:
        raise CacheError(
            f"dataset.cache: cannot write to {cache_dir} ({error.strerror}); "
            "set dataset.cache=PATH to a folder that can be written"
        ) from error
    with locked(lock, f"another run prepares {final}") as alone:
        store = load_prepared(final)
        if store is not None:
            return store
        if alone:
            _remove_leftovers(cache_dir, final.name)
        header = {"name": name, "fingerprint": identity, "key": key, "class_names": list(class_names)}
        _write_set(final, header, (num_items, *item_shape), np.dtype(dtype), fill)
    store = load_prepared(final)
    assert store is not None, f"{final} was just written and does not load"
    return store


def load_prepared(path: Path) -> Store | None:
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
    return Store(mapped, None if labels is None else torch.from_numpy(labels), class_names, name, identity)


def _remove_leftovers(cache_dir: Path, name: str) -> None:
    """Remove what killed runs left; only under the lock, or it might be somebody's work in progress."""
    for leftover in cache_dir.glob(f".{name}.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _write_set(
    final: Path, header: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype, fill: Callable[[], Iterator[Block]]
) -> None:
    """Write the set beside its place and move it there; nothing stays if that fails."""
    needed = int(np.prod(shape)) * dtype.itemsize
    try:
        free = shutil.disk_usage(final.parent).free
        if free < needed:
            raise OSError(errno.ENOSPC, "too little space")
        temporary = final.parent / f".{final.name}.tmp-{secrets.token_hex(4)}"
        temporary.mkdir()  # not by tempfile, whose folders only their owner may read
    except OSError as error:
        raise _disk_error(final, needed, error) from error
    log.info("preparing %d images in %s", shape[0], final)
    blocks = fill()
    try:
        count, labels = _write_items(temporary / "items.npy", shape, dtype, blocks)
        if labels:
            with open(temporary / "labels.npy", "wb") as file:
                np.save(file, np.concatenate(labels))
                _to_disk(file)
        meta = {"format": FORMAT, **header, "shape": [count, *shape[1:]], "dtype": dtype.str}
        meta["bytes"] = {file.name: file.stat().st_size for file in sorted(temporary.glob("*.npy"))}
        with open(temporary / "meta.json", "wb") as file:
            file.write(json.dumps(meta, indent=1).encode())
            _to_disk(file)
        _move(temporary, final)
    except OSError as error:
        raise _disk_error(final, needed, error) from error
    finally:  # also on KeyboardInterrupt: stop the decoding first, then remove what it wrote
        close = getattr(blocks, "close", None)
        if close is not None:
            close()
        shutil.rmtree(temporary, ignore_errors=True)


def _write_items(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, blocks: Iterator[Block]
) -> tuple[int, list[np.ndarray]]:
    """Write the blocks as one .npy file; returns their number of items, and the labels.

    Plain writes rather than a writable map: a full disk is then an error, where the map would die of SIGBUS.
    """
    from tqdm import tqdm

    count, labels = 0, []
    bar = tqdm(total=shape[0], unit="img", desc=f"preparing {path.parent.parent.name}", disable=None)
    with bar, open(path, "wb") as file:
        _write_header(file, shape, dtype)
        for items, item_labels in blocks:
            assert items.shape[1:] == shape[1:] and items.dtype == dtype
            _write(file, np.ascontiguousarray(items))
            count += len(items)
            if item_labels is not None:
                labels.append(item_labels.astype(np.int64))
            bar.update(len(items))
        file.seek(0)
        _write_header(file, (count, *shape[1:]), dtype)  # numpy leaves room for the first number to change
        _to_disk(file)
    return count, labels


def _write_header(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _write(file: BinaryIO, block: np.ndarray) -> None:
    file.write(block.data)


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _move(temporary: Path, final: Path) -> None:
    """Put a whole set in its place, instead of a broken one if there is one."""
    _sync_folder(temporary)
    old = final.parent / f".{final.name}.tmp-old"  # rename cannot replace a folder that holds files
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    temporary.rename(final)
    _sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_folder(path: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_error(final: Path, needed: int, error: OSError) -> WorldError:
    try:
        free = f"{shutil.disk_usage(final.parent).free / 2**20:.0f} MiB"
    except OSError:
        free = "unknown"
    return WorldError(
        f"cannot prepare {final} ({error.strerror or error}): it needs {needed / 2**20:.0f} MiB, free are {free}; "
        "make room or set dataset.cache=PATH to another disk"
    )
