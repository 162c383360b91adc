"""How many images fit at once and how long a step takes, tried on the run's own objects without a trace in them."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from ddpm_cli.build.trainer import compile_network
from ddpm_cli.system.memory import available_bytes, first_that_fits, halves
from ddpm_cli.training.data_parallel import SINGLE_RANK, SingleRank
from ddpm_cli.training.state import TrainState
from ddpm_cli.training.step import TrainStep

log = logging.getLogger("ddpm_cli")
_SHARE = 0.8  # of the memory that is there; the rest is for the optimiser, previews and fragmentation
_BLOCKS = 5  # of calls, whose median is the time of one


def joined(
    train_step: TrainStep, state: TrainState, cfg: dict[str, Any], ranks: SingleRank, micro: int | None
) -> TrainStep:
    """The step of all ranks together, which call this at the same time.

    In this order: micro-batches are tried on the bare network, as each size would be compiled, and the one that gives
    its mean gradient to the other ranks calls the compiled one.
    """
    train_step = with_micro_batch(replace(train_step, ranks=ranks), state, cfg, micro)
    if cfg["compile"]:
        compile_network(state.network, one_pass=train_step.one_pass)
    return train_step.on(ranks)


def with_micro_batch(train_step: TrainStep, state: TrainState, cfg: dict[str, Any], known: int | None) -> TrainStep:
    """With micro_batch_size=auto, as many images at once as fit on every rank: found once, then `known` to every
    resume."""
    if cfg["training"]["micro_batch_size"] != "auto":
        return train_step
    size = known or largest_micro_batch(train_step, state)
    return replace(train_step, settings=replace(train_step.settings, micro_batch_size=size))


def largest_micro_batch(train_step: TrainStep, state: TrainState) -> int:
    """The largest number of images at once that fits on every rank, found by trying; leaves the state as it was.

    Sizes are a rank's share of the batch and its halves, rounded up. On a GPU each is tried; elsewhere memory does not
    run out so politely, and one image is weighed instead.
    """
    world = train_step.ranks.world
    batch = train_step.settings.batch_size // world
    sizes = halves(batch)
    device = next(state.network.parameters()).device
    if device.type == "cuda":
        chosen = first_that_fits(sizes, lambda size: _try_on_gpu(train_step, state, size, device))
    else:
        weight, room = _bytes_per_image(train_step, state), available_bytes() * _SHARE / world
        chosen = next((size for size in sizes if size * weight <= room), 1)
    chosen = train_step.ranks.smallest(chosen)
    log.info("training.micro_batch_size=auto: %d of %d images at once", chosen, batch)
    return chosen


def _backward(train_step: TrainStep, state: TrainState, size: int) -> None:
    """One pass over `size` images of the first batch, whose gradient is thrown away."""
    settings = replace(train_step.settings, batch_size=size, micro_batch_size=size)
    draws = replace(train_step.draws, batch_size=size)
    probe = replace(train_step, settings=settings, draws=draws, ranks=SINGLE_RANK)
    try:
        probe.gradient(state)
    finally:
        state.optimizer.zero_grad(set_to_none=True)


def _try_on_gpu(train_step: TrainStep, state: TrainState, size: int, device: torch.device) -> bool:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    # What the optimiser will hold after its first step (two moments).
    held = [torch.empty_like(p) for p in state.network.parameters() for _ in range(2)]
    _backward(train_step, state, size)
    torch.cuda.synchronize(device)
    fits = torch.cuda.max_memory_reserved(device) <= 0.92 * torch.cuda.get_device_properties(device).total_memory
    del held
    torch.cuda.empty_cache()
    return fits


def _bytes_per_image(train_step: TrainStep, state: TrainState) -> float:
    """What the graph of two images keeps for the backward pass, doubled for what it needs in passing."""
    seen: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in state.network.parameters()}

    def weigh(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    size = min(2, train_step.settings.batch_size)
    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
        _backward(train_step, state, size)
    return 2 * sum(seen.values()) / size


@contextmanager
def untouched(state: TrainState) -> Iterator[None]:
    """Whatever is done to the state inside, it is undone, to the bit; the default generators go back as well."""
    device = next(state.network.parameters()).device
    saved = state.to_bytes()  # not in the memory that the steps are to be measured with
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            state.optimizer.zero_grad(set_to_none=True)
            state.load_bytes(saved)


def per_call(work: Callable[[], Any], now: Callable[[], float], seconds: float, most: float) -> float:
    """Seconds that a call of `work` takes: two calls to warm up, then for about `seconds` the median of blocks of
    calls, so that a hiccup does not count.

    now: a clock that waits for the device. A call that takes longer than `most` is not repeated any further.
    """
    work()
    began = now()
    work()
    took = now() - began
    if took > most:
        return took
    size = max(1, round(seconds / _BLOCKS / max(took, 1e-6)))
    blocks: list[float] = []
    for _ in range(max(2, min(_BLOCKS, round(seconds / max(took, 1e-6))))):
        began = now()
        for _ in range(size):
            work()
        blocks.append((now() - began) / size)
    return median(blocks)
