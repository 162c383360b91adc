"""Images at once: what to say when memory runs out, and the largest number that fits."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ddpm_cli.errors import WorldError
from ddpm_cli.runtime import is_out_of_memory
from ddpm_cli.training.ranks import SINGLE
from ddpm_cli.training.state import TrainState
from ddpm_cli.training.step import Trainer

log = logging.getLogger("ddpm_cli")
_SHARE = 0.8  # of the memory that is there; the rest is for the optimiser, previews and fragmentation


def out_of_memory(step: int, batch: int, micro: int, newest: Path | None, error: BaseException) -> WorldError:
    """The error to end with: the batch size and two overrides that would fit; the recipe is the user's to change."""
    if micro > 1:
        smaller = [f"training.micro_batch_size={max(1, micro // n)}" for n in (2, 4)]
        remedy = " or ".join(dict.fromkeys(smaller)) + " (the result stays the same)"
        remedy += "" if micro > 2 else f", or training.batch_size={max(1, batch // 2)} (another recipe)"
    else:
        remedy = "a smaller model.channels or dataset.image_size (another recipe): one image at once is too much"
    reason = (str(error).splitlines() or ["no memory left"])[0].split(". ")[0][:160]
    go_on = f"; go on from {newest} with" if newest else "; try"
    return WorldError(
        f"out of memory at step {step + 1} with {micro} images at once (training.batch_size={batch}){go_on} {remedy} "
        f"[{reason}]"
    )


def largest_micro_batch(trainer: Trainer, state: TrainState) -> int:
    """The largest number of images at once that fits on every rank, found by trying; leaves the state as it was.

    Sizes are a rank's share of the batch and its halves, rounded up. On a GPU each is tried; elsewhere memory does not
    run out so politely, and one image is weighed instead.
    """
    world = trainer.ranks.world
    batch = -(-trainer.settings.batch_size // world)
    sizes = [batch]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    device = next(state.network.parameters()).device
    if device.type == "cuda":
        chosen = first_that_fits(sizes, lambda size: _try_on_gpu(trainer, state, size, device))
    else:
        weight, room = _bytes_per_image(trainer, state), _available_bytes() * _SHARE / world
        chosen = next((size for size in sizes if size * weight <= room), 1)
    chosen = trainer.ranks.smallest(chosen)
    log.info("training.micro_batch_size=auto: %d of %d images at once", chosen, batch)
    return chosen


def first_that_fits(sizes: list[int], attempt: Callable[[int], bool]) -> int:
    """The first size whose attempt succeeds without running out of memory; 1 if none does."""
    for size in sizes:
        try:
            if attempt(size):
                return size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    return 1


def _backward(trainer: Trainer, state: TrainState, size: int) -> None:
    """One pass over `size` images of the first batch, whose gradient is thrown away."""
    settings = replace(trainer.settings, batch_size=size, micro_batch_size=size)
    draws = replace(trainer.draws, batch_size=size)
    probe = replace(trainer, settings=settings, draws=draws, ranks=SINGLE)
    try:
        probe.gradient(state)
    finally:
        state.optimizer.zero_grad(set_to_none=True)


def _try_on_gpu(trainer: Trainer, state: TrainState, size: int, device: torch.device) -> bool:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    # What the optimiser will hold after its first step (two moments).
    held = [torch.empty_like(p) for p in state.network.parameters() for _ in range(2)]
    _backward(trainer, state, size)
    torch.cuda.synchronize(device)
    fits = torch.cuda.max_memory_reserved(device) <= 0.92 * torch.cuda.get_device_properties(device).total_memory
    del held
    torch.cuda.empty_cache()
    return fits


def _bytes_per_image(trainer: Trainer, state: TrainState) -> float:
    """What the graph of two images keeps for the backward pass, doubled for what it needs in passing."""
    seen: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in state.network.parameters()}

    def weigh(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    size = min(2, trainer.settings.batch_size)
    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
        _backward(trainer, state, size)
    return 2 * sum(seen.values()) / size


def _available_bytes() -> float:
    """Memory that can be had: the system's, or less where a container is bound to less."""
    found = [2.0**63]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        found += [int(limit) - int(used)] if limit.isdecimal() else []
    except OSError:  # not Linux, or no such limit
        pass
    return min(found)
