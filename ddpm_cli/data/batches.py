"""Batches as a pure function of (seed, step): order and flips come from the position in the stream of images."""

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.data.checks import check_count
from ddpm_cli.data.counter import bits
from ddpm_cli.data.store import Store
from ddpm_cli.errors import UserError
from ddpm_cli.seeding import generator, mix

_ORDER, _FLIP = 0x0DA7A001, 0x0DA7A002  # streams of this module, far from small counters
_DEVICE_SHARE = 0.3  # of the free memory of a GPU that a data set may take


class Batches:
    """The endless sequence of shuffled batches of a store; every epoch is a permutation of its own.

    Position p = step * batch_size + row lies in epoch p // N. Batches run on across the ends of epochs.
    """

    def __init__(self, store: Store, batch_size: int, seed: int, flip: bool, device: torch.device | str) -> None:
        check_count("training.batch_size", batch_size, 1, 2**31)
        if flip and len(store.item_shape) != 3:
            raise UserError(f"dataset.flip mirrors images (C, H, W), and {store.name} has items {store.item_shape}")
        self.store, self.batch_size, self.seed, self.flip = store, batch_size, seed, flip
        self.device = torch.device(device)
        self._orders: dict[int, Tensor] = {}
        self._items, self._labels = store.items, store.labels
        if self._fits_on_device():
            self._items = store.items.to(self.device)
            self._labels = None if store.labels is None else store.labels.to(self.device)

    def batch(self, step: int, start: int = 0, stop: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Rows start..stop of the batch of a step (from 0): x_0 (B, *item_shape) float32 in [-1, 1], labels (B,)."""
        stop = self.batch_size if stop is None else stop
        assert step >= 0 and 0 <= start < stop <= self.batch_size, (step, start, stop)
        first, last = step * self.batch_size + start, step * self.batch_size + stop
        index = self._index(first, last)
        # one transfer for both, and pinned: the copy of pageable memory would wait for the device
        plan = self._to_device(torch.stack((index, self._mirrored(first, last))))
        items = self._rows(self._items, index, plan[0])
        labels = None if self._labels is None else self._rows(self._labels, index, plan[0])
        if self.flip:
            mirrored = plan[1].view(-1, 1, 1, 1).bool()
            items = torch.where(mirrored, items.flip(-1), items)
        return self.store.to_model(items), labels

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

    def _rows(self, source: Tensor, index: Tensor, index_on_device: Tensor) -> Tensor:
        """The rows at `index`, gathered where the set lives, on the device."""
        if source.device == index_on_device.device:
            return source.index_select(0, index_on_device)
        return self._to_device(source.index_select(0, index))

    def _to_device(self, x: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return x.pin_memory().to(self.device, non_blocking=True)
        return x.to(self.device)

    def _fits_on_device(self) -> bool:
        if self.device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(self.device)
        return self.store.items.nbytes < _DEVICE_SHARE * free
