"""Data-parallel ranks: each works on its share of the global batch, and all make the same step with the mean gradient.

Every rank runs the whole loop, on the same state bit for bit; the first alone has the run's folder. What may differ
between them (a signal, the first one's clock, what it decided of its files) is agreed on before anything is done about
it. The mean of the gradients is DistributedDataParallel's, which forms it while the backward pass is still under way.
"""

import contextlib
import copy
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.losses import LossTerms
from ddpm_cli.system.memory import is_out_of_memory

_TIMEOUT = timedelta(minutes=10)  # of a sum, in which all ranks are at the same time
_PATIENCE = timedelta(days=7)  # of ranks that wait for the first to save or draw; a death is noticed otherwise
T = TypeVar("T")


def micro_batches(batch_size: int, micro: int, rank: int, world: int) -> Iterator[tuple[int, slice]]:
    """(number, rows of the global batch) of a rank's micro-batches, numbered over all ranks, which have equally many.
    batch_size: a multiple of world."""
    share = batch_size // world
    rows = range(rank * share, (rank + 1) * share)
    for number, start in enumerate(rows[::micro], rank * -(-share // micro)):
        yield number, slice(start, min(start + micro, rows.stop))


class SingleRank:
    """One process: there is nobody to agree with."""

    rank, world = 0, 1

    def parallel(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser whose backward pass leaves the mean gradient of all ranks."""
        return denoiser

    def apart(self) -> AbstractContextManager[Any]:
        """Inside, backward passes add up on this rank alone."""
        return contextlib.nullcontext()

    def together(self) -> AbstractContextManager[Any]:
        """Around what waits for the other ranks: the error that is raised if one is gone."""
        return contextlib.nullcontext()

    def joined(self, others: list[nn.Parameter], losses: LossTerms) -> LossTerms:
        """The losses of the global batch, of this rank's; the gradients of parameters that are not the denoiser's
        become the mean of all ranks'."""
        return losses

    def first(self, value: T) -> T:
        """The first rank's value (plain: it is pickled), on all."""
        return value

    def any(self, flag: bool) -> bool:
        return flag

    def smallest(self, number: int) -> int:
        return number


SINGLE_RANK = SingleRank()


class Ranks(SingleRank):
    """One of several ranks; every method but `apart` is called on all of them in the same order.

    lost: the error to raise when another rank is gone.
    """

    def __init__(self, rank: int, world: int, lost: Callable[[], Exception]):
        self.rank, self.world, self._lost = rank, world, lost
        self.waits = False  # for the other ranks, or did so in vain
        self._network: DistributedDataParallel | None = None

    def connect(self, store: dist.Store, device: torch.device, logs: Path) -> None:
        """Joins the group. What is agreed on goes through the CPU, so that no rank waits for its GPU.

        logs: where NCCL's flight recorder writes what each rank was at, should a sum take longer than its timeout.
        """
        for name in ("TORCH_FR", "TORCH_NCCL"):  # what torch calls it now, and what it did
            os.environ.setdefault(f"{name}_DUMP_ON_TIMEOUT", "1")
        for name in ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"):
            os.environ.setdefault(name, f"{logs / 'nccl_trace_rank_'}")
        with self.together():
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=dist.PrefixStore("group", store),
                rank=self.rank,
                world_size=self.world,
                timeout=_TIMEOUT,
                device_id=device if device.type == "cuda" else None,
            )
            self._agreeing: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)

    def parallel(self, denoiser: Denoiser) -> Denoiser:
        with self.together(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions of torch call broadcast_buffers otherwise
            # With find_unused_parameters the buckets in which gradients are summed stay what they are. Otherwise they
            # are rebuilt after a run's first step: a resumed run would sum its first step in another order than the
            # uninterrupted one, and from three ranks on to other bits.
            self._network = DistributedDataParallel(
                denoiser.network, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=True
            )
        parallel = copy.copy(denoiser)
        parallel.call_network = self._network.__call__
        return parallel

    def apart(self) -> AbstractContextManager[Any]:
        return self._network.no_sync() if self._network is not None else contextlib.nullcontext()

    @contextmanager
    def together(self) -> Iterator[None]:
        if self.waits:
            raise self._lost()
        self.waits = True
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or "gloo" in str(error):  # a connection was closed
                raise self._lost() from error
            self.waits = not is_out_of_memory(error)  # of this rank; the others notice that it ends
            raise
        except BaseException:
            self.waits = False
            raise
        self.waits = False

    def joined(self, others: list[nn.Parameter], losses: LossTerms) -> LossTerms:
        known = [name for name in ("total", "mse", "vb") if getattr(losses, name) is not None]
        mine = torch.stack([getattr(losses, name) for name in known])
        with self.together():
            whole = mine.new_empty(self.world * len(mine), *mine.shape[1:])
            dist.all_gather_into_tensor(whole, mine)
            for gradient in (p.grad for p in others if p.grad is not None):
                dist.all_reduce(gradient)
                gradient /= self.world
        by_name = whole.view(self.world, *mine.shape).transpose(0, 1).flatten(1)
        return replace(losses, **dict(zip(known, by_name, strict=True)))

    def first(self, value: T) -> T:
        there = [value]
        with self.together():
            dist.broadcast_object_list(there, 0, group=self._agreeing)
        return there[0]

    def any(self, flag: bool) -> bool:
        return bool(self._extreme(int(flag), dist.ReduceOp.MAX))

    def smallest(self, number: int) -> int:
        return self._extreme(number, dist.ReduceOp.MIN)

    def _extreme(self, number: int, operation: Any) -> int:
        extreme = torch.tensor(number)
        with self.together():
            dist.all_reduce(extreme, operation, group=self._agreeing)
        return int(extreme)
