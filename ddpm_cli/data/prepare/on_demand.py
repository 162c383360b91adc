"""Items that are not prepared: each is decoded whenever a batch asks for it, and nothing of it is kept.

For sets that no disk has room for a decoded copy of. Which items a step sees is the same function of seed and step as
of a prepared set, so the batches are the same bits; what it costs is decoding each item in each epoch, on all cores.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.data.prepare.decoding import Item, check_failures
from ddpm_cli.data.prepare.pool import in_order
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.media.base import DecodeError

log = logging.getLogger("ddpm_cli")
_CHUNK = 4  # items that one thread decodes at a time


class OnDemand:
    """Items (N, *item_shape): of a tensor it has what a Store's users need. Safe to be asked by several threads.

    skip: an item that cannot be decoded is told, and the next of its class stands in its place, for at most
    max_skipped of all; else, and beyond that, WorldError.
    """

    def __init__(
        self,
        item: Callable[[int], Item],
        labels: Sequence[int],  # of all items
        item_shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        many: str,
        skip: bool,
        max_skipped: float,
        held: Any = None,  # what must stay open as long as items are asked for
    ) -> None:
        self._item, self._held = item, held
        self._labels = np.asarray(labels)
        self.shape, self.dtype = torch.Size((len(labels), *item_shape)), dtype
        self._many, self._skip, self._max_skipped = many, skip, max_skipped
        self._failures: dict[int, str] = {}
        self._lock = threading.Lock()  # of the failures

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Tensor:
        """As a tensor's: a number, a slice, or numbers, which keep their shape."""
        chosen = torch.arange(*rows.indices(len(self))) if isinstance(rows, slice) else torch.as_tensor(rows)
        return self.index_select(0, chosen.flatten()).view(*chosen.shape, *self.shape[1:])

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        assert dim == 0
        arrays = [array for some in in_order(self._decoded, index.tolist(), chunk=_CHUNK) for array in some]
        return torch.from_numpy(np.stack(arrays)) if arrays else torch.empty((0, *self.shape[1:]), dtype=self.dtype)

    def _decoded(self, rows: Sequence[int]) -> list[np.ndarray]:
        return [self._one(row) for row in rows]

    def _one(self, row: int) -> np.ndarray:
        tried = row
        while True:
            item = self._item(tried)
            try:
                return item.decode()
            except DecodeError as error:
                self._failed(tried, f"{item.place}: {error}")
            tried = self._next_of_class(tried)
            if tried == row:
                raise WorldError(f"of the {self._many} of a class none can be read, such as {item.place}")

    def _failed(self, row: int, what: str) -> None:
        with self._lock:
            known = row in self._failures
            self._failures[row] = what
            failures = list(self._failures.values())
        try:
            check_failures(failures, len(self), self._skip, self._max_skipped, self._many)
        except UserError as error:  # in the midst of a run, whose command line was right
            raise WorldError(str(error)) from error
        if not known:
            log.warning("skipped %s; the next of its class stands in its place", what)

    def _next_of_class(self, row: int) -> int:
        same = np.flatnonzero(self._labels == self._labels[row])
        return int(same[(np.searchsorted(same, row) + 1) % len(same)])
