"""Data-parallel ranks: each works on its rows of the global batch, then all make the same step with the sum.

Rank 0 leads: it alone sees the run's folder and its signals, and tells the others before each step what to do. All
hold the same state, bit for bit: gradients and losses are summed once and handed round.
"""

import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ddpm_cli.diffusion.losses import LossTerms
from ddpm_cli.runtime import is_out_of_memory
from ddpm_cli.training.state import TrainState

_STOP, _STEP, _SHARE, _ADOPT = range(4)  # orders, each with a number
_GIVEN_UP, _ERROR, _OUT_OF_MEMORY = range(1, 4)  # how a rank's part of a step may fail, the worst last
_RANKS = 2**16
_BUCKET = 2**23  # numbers summed at once
_PATIENCE = timedelta(days=7)  # of ranks that wait for rank 0 to save or sample; a death is noticed otherwise


class GivenUp(Exception):
    """This step is not made: a rank could not do its part, or rank 0 was told to end."""


def micro_batches(batch_size: int, micro: int, rank: int, world: int) -> Iterator[tuple[int, slice]]:
    """(number, rows of the global batch) of a rank's micro-batches, numbered over all ranks; blocks of rows differ in
    length by one at most."""
    number = 0
    for owner in range(world):
        rows = range(owner * batch_size // world, (owner + 1) * batch_size // world)
        for start in rows[::micro]:
            if owner == rank:
                yield number, slice(start, min(start + micro, rows.stop))
            number += 1


class Single:
    """One process: there is nobody to agree with."""

    rank, world = 0, 1

    def begin(self, step: int) -> None:
        pass

    @contextmanager
    def attempt(self, parameters: list[Tensor]) -> Iterator[None]:
        yield

    def joined(self, parameters: list[Tensor], losses: LossTerms, batch_size: int) -> LossTerms:
        return losses

    def share(self, state: TrainState) -> None:
        pass

    def adopt(self, recipe: dict[str, Any]) -> None:
        pass

    def smallest(self, number: int) -> int:
        return number


SINGLE = Single()


class Group:
    """One of several ranks; every method but `receive` and `told_to_end` is called on all of them together.

    store: short texts beside the collectives. lost: the error to raise when another rank is gone.
    """

    def __init__(self, rank: int, world: int, store: dist.Store, lost: Callable[[], Exception]):
        self.rank, self.world, self._store, self._lost = rank, world, store, lost
        self.recipe: dict[str, Any] | None = None  # what rank 0 wants to be adopted
        self.broken = False  # inside a collective, or one failed: no other may follow
        self._asked, self._told = 0.0, False

    def connect(self, device: torch.device) -> None:
        """Joins the process group. What steers goes through the CPU, so that no rank waits for its GPU."""
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store = dist.PrefixStore("group", self._store)
        with self._together():
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world, timeout=_PATIENCE)

    def begin(self, step: int) -> None:
        """A step follows: rank 0 says so, the others have heard it."""
        self._order(_STEP, step)

    @contextmanager
    def attempt(self, parameters: list[Tensor]) -> Iterator[None]:
        """Around what each rank does by itself: if it fails on one, it is given up on all. A parameter with a gradient
        on any rank has one on all."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        worst = self._agreed(failure, parameters)
        if failure is not None and self.rank == 0:
            raise failure
        if worst:
            raise self._failure_of_another(worst) if self.rank == 0 else GivenUp

    def joined(self, parameters: list[Tensor], losses: LossTerms, batch_size: int) -> LossTerms:
        """Sums the gradients over the ranks, in place, and returns the losses of all rows. losses: of this rank's."""
        rows = range(self.rank * batch_size // self.world, (self.rank + 1) * batch_size // self.world)

        def wide(mine: Tensor | None) -> Any:
            if mine is None:
                return None
            full = mine.new_zeros(batch_size)
            full[rows.start : rows.stop] = mine  # the other ranks' rows are added to zeros: exact
            return full

        full = LossTerms(wide(losses.total), wide(losses.mse), wide(losses.vb))
        gradients = [p.grad for p in parameters if p.grad is not None]
        with self._together():
            _sum([*gradients, *(x for x in (full.total, full.mse, full.vb) if x is not None)])
        return full

    def share(self, state: TrainState) -> None:
        """Gives rank 0's state to the others, which take it as their next order."""
        if self.rank == 0:
            file = io.BytesIO()
            torch.save(state.state_dict(), file)
            self._send(_SHARE, file.getvalue())

    def adopt(self, recipe: dict[str, Any]) -> None:
        """Gives settings that rank 0 chose to the others, which find them in `recipe` before their next step."""
        if self.rank == 0:
            self._send(_ADOPT, json.dumps(recipe).encode())

    def smallest(self, number: int) -> int:
        least = torch.tensor(number)
        with self._together():
            dist.all_reduce(least, op=dist.ReduceOp.MIN)
        return int(least)

    def stop(self) -> None:
        """Rank 0's last order."""
        self._order(_STOP, 0)

    def receive(self, state: TrainState) -> bool:
        """The next order, of a rank beside the first: whether a step follows. Takes a state that is shared."""
        while True:
            order = torch.zeros(2, dtype=torch.int64)
            with self._together():
                dist.broadcast(order, 0)
            kind, number = order.tolist()
            if kind in (_SHARE, _ADOPT):
                data = torch.empty(number, dtype=torch.uint8)
                with self._together():
                    dist.broadcast(data, 0)
                content = data.numpy().tobytes()
                if kind == _SHARE:
                    state.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
                else:
                    self.recipe = json.loads(content)
                continue
            state.step = number
            return kind == _STEP

    def tell_to_end(self) -> None:
        """Rank 0's, to ranks in the middle of a step that it gives up."""
        if not self._told:
            self._told = True
            self._store.set("end", "1")

    def told_to_end(self) -> bool:
        """Asked between micro-batches, looked up twice a second at most."""
        if not self._told and time.monotonic() - self._asked > 0.5:
            self._asked, self._told = time.monotonic(), self._store.check(["end"])
        return self._told

    def _send(self, kind: int, content: bytes) -> None:
        self._order(kind, len(content))
        with self._together():
            dist.broadcast(torch.frombuffer(bytearray(content), dtype=torch.uint8), 0)

    def _order(self, kind: int, number: int) -> None:
        if self.rank == 0:
            with self._together():
                dist.broadcast(torch.tensor([kind, number]), 0)

    def _agreed(self, failure: Exception | None, parameters: list[Tensor]) -> int:
        """The worst failure of all ranks, 0 if there is none."""
        code = 0
        if failure is not None:
            given_up = self.rank == 0 or isinstance(failure, GivenUp)  # what rank 0 raises, no other needs to know
            code = _GIVEN_UP if given_up else _OUT_OF_MEMORY if is_out_of_memory(failure) else _ERROR
            self._store.set(f"failure/{self.rank}", f"{type(failure).__name__}: {failure}")
        flags = torch.tensor([code * _RANKS + self.rank * bool(code), *(p.grad is not None for p in parameters)])
        with self._together():
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        worst, *there = flags.tolist()
        for parameter, present in zip(parameters, there, strict=True):
            if present and parameter.grad is None and not worst:
                parameter.grad = torch.zeros_like(parameter)
        return worst

    def _failure_of_another(self, worst: int) -> Exception:
        kind, rank = divmod(worst, _RANKS)
        text = f"rank {rank}: {self._store.get(f'failure/{rank}').decode(errors='replace')}"
        return torch.OutOfMemoryError(text) if kind == _OUT_OF_MEMORY else RuntimeError(text)

    @contextmanager
    def _together(self) -> Iterator[None]:
        if self.broken:
            raise self._lost()
        self.broken = True
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):  # of the buffer that is summed; the others notice that this rank ends
                raise
            # gloo's: a connection was closed
            raise self._lost() from error
        self.broken = False


def _sum(tensors: list[Tensor]) -> None:
    """Each tensor becomes its sum over the ranks, the same bits on all."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat)
        for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """In order, of one type each, few and not too large."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or size + tensor.numel() > _BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket
