"""How long a step takes here, measured on the run's own objects without a trace in them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch

from ddpm_cli.training.state import TrainState

_BLOCKS = 5


@contextmanager
def untouched(state: TrainState) -> Iterator[None]:
    """Whatever is done to the state inside, it is undone, to the bit; the default generators go back as well."""
    device = next(state.network.parameters()).device
    saved = _on_cpu(state.state_dict())  # not in the memory that the steps are to be measured with
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            state.optimizer.zero_grad(set_to_none=True)
            state.load_state_dict(saved)


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


def _on_cpu(node: Any) -> Any:
    if isinstance(node, torch.Tensor):
        return node.detach().to("cpu", copy=True)
    if isinstance(node, dict):
        return {key: _on_cpu(value) for key, value in node.items()}
    return [_on_cpu(value) for value in node] if isinstance(node, list) else node
