"""Batches as a pure function of (seed, step): order and flips come from the position in the stream of images.

A set that fits lives on the GPU. One that does not stays where it is, perhaps in a file larger than the memory, and a
thread brings each step's rows while the step before is being made; so it is with what is decoded on demand.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.data.loading.paging import will_need
from ddpm_cli.data.store import Store
from ddpm_cli.errors import UserError
from ddpm_cli.seeding import bits, generator, mix
from ddpm_cli.system.ahead import Ahead

_ORDER, _FLIP = 0x0DA7A001, 0x0DA7A002  # streams of this module, far from small counters
_DEVICE_SHARE = 0.3  # of the free memory of a GPU that a data set may take, beside what is reserved


class _Rows(NamedTuple):
    """Which rows of which step's batch."""

    step: int
    start: int
    stop: int


class _Gathered(NamedTuple):
    items: Tensor  # of the store's dtype; on the device, or pinned and on their way there
    labels: Tensor | None
    mirrored: Tensor  # (B,) int64, 0 or 1


class Batches:
    """The endless sequence of shuffled batches of a store; every epoch is a permutation of its own.

    Position p = step * batch_size + row lies in epoch p // N. Batches run on across the ends of epochs.

    reserved: bytes of the device's free memory that are not to be had, as the optimiser will take them.
    """

    def __init__(
        self, store: Store, batch_size: int, seed: int, flip: bool, device: torch.device | str, reserved: int = 0
    ) -> None:
        if flip and len(store.item_shape) != 3:
            raise UserError(f"dataset.flip mirrors images (C, H, W), and {store.name} has items {store.item_shape}")
        self.store, self.batch_size, self.seed, self.flip = store, batch_size, seed, flip
        self.device = torch.device(device)
        self._orders: dict[int, Tensor] = {}
        self._items, self._labels = store.items, store.labels
        if isinstance(store.items, Tensor) and self._fits_on_device(store.items.nbytes, reserved):
            self._items = store.items.to(self.device)
            self._labels = None if store.labels is None else store.labels.to(self.device)
        self._gathered: Callable[[_Rows], _Gathered] = self._gather
        self._lock = threading.Lock()  # of the orders
        if not isinstance(self._items, Tensor) or (self.device.type == "cuda" and self._items.device != self.device):
            self.gather_ahead()

    def gather_ahead(self) -> None:
        """From now on a thread gathers the rows of the step that follows the one asked for."""
        self._gathered = Ahead(self._gather, lambda rows: rows._replace(step=rows.step + 1), lambda rows: rows[1:])

    def batch(self, step: int, start: int = 0, stop: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Rows start..stop of the batch of a step (from 0): x_0 (B, *item_shape) float32 in [-1, 1], labels (B,)."""
        stop = self.batch_size if stop is None else stop
        assert step >= 0 and 0 <= start < stop <= self.batch_size, (step, start, stop)
        gathered = self._gathered(_Rows(step, start, stop))
        items, mirrored = self._there(gathered.items), self._there(gathered.mirrored)
        labels = None if gathered.labels is None else self._there(gathered.labels)
        if self.flip:
            items = torch.where(mirrored.view(-1, 1, 1, 1).bool(), items.flip(-1), items)
        return self.store.to_model(items), labels

    def _gather(self, rows: _Rows) -> _Gathered:
        """What a batch is made of, taken from where the set lives."""
        first, last = rows.step * self.batch_size + rows.start, rows.step * self.batch_size + rows.stop
        with self._lock:
            index = self._index(first, last)
        mirrored = self._mirrored(first, last)
        if isinstance(self._items, Tensor):
            if self._items.device == self.device and self.device.type != "cpu":
                index, mirrored = self._there(self._pinned(torch.stack((index, mirrored))))  # one transfer for both
            elif self._items.device.type == "cpu":
                will_need(self._items, index)
        items = self._items.index_select(0, index)
        labels = None if self._labels is None else self._labels.index_select(0, index)
        return _Gathered(self._pinned(items), None if labels is None else self._pinned(labels), self._pinned(mirrored))

    def _index(self, first: int, last: int) -> Tensor:
        """Which items stand at positions first..last."""
        size = len(self.store)
        epochs = range(first // size, (last - 1) // size + 1)
        near = range(epochs.start - 1, epochs.stop)  # slices of a batch that spans two epochs go back and forth
        self._orders = {epoch: order for epoch, order in self._orders.items() if epoch in near}
        parts = [self._order(epoch)[max(first - epoch * size, 0) : min(last - epoch * size, size)] for epoch in epochs]
        return torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        """The permutation of an epoch."""
        if epoch not in self._orders:
            self._orders[epoch] = torch.randperm(len(self.store), generator=generator("cpu", self.seed, _ORDER, epoch))
        return self._orders[epoch]

    def _mirrored(self, first: int, last: int) -> Tensor:
        """Which positions are mirrored: int64, 0 or 1."""
        if not self.flip:
            return torch.zeros(last - first, dtype=torch.int64)
        coins = bits(mix(self.seed, _FLIP), np.arange(first, last)) >> np.uint64(63)
        return torch.from_numpy(coins.astype(np.int64))

    def _pinned(self, x: Tensor) -> Tensor:
        """Whose copy to a GPU does not make the host wait. Pinned memory is used again only once that is done."""
        return x.pin_memory() if self.device.type == "cuda" and not x.is_cuda else x

    def _there(self, x: Tensor) -> Tensor:
        return x.to(self.device, non_blocking=True)

    def _fits_on_device(self, nbytes: int, reserved: int) -> bool:
        if self.device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(self.device)
        return nbytes < _DEVICE_SHARE * (free - reserved)
