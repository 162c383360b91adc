"""The learning rate as a function of the step: a linear warm-up, then constant, a decay to zero at the run's end, or
one that knows of no end."""

import math
from typing import Any


def factor(step: int, *, num_steps: int, warmup_steps: int, decay: str, reference_steps: int | None = None) -> float:
    """What the base learning rate is multiplied with at `step` (counted from 0): never 0 before the last step.

    reference_steps: where the inverse square root begins to fall (Karras et al. 2024, config E); None: where the
    warm-up ends (Vaswani et al. 2017, Section 5.3).
    """
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    done = max(0, step - warmup_steps) / max(1, num_steps - warmup_steps)
    if decay == "linear":
        return warm * (1 - min(done, 1.0))
    if decay == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    if decay == "inverse_sqrt":
        return warm / math.sqrt(max(1.0, (step + 1) / (reference_steps or max(1, warmup_steps))))
    return warm


def told(
    base: float, step: int, *, num_steps: int, warmup_steps: int, decay: str, reference_steps: int | None = None
) -> str | None:
    """What of the rate is otherwise than its setting says: for a run that goes on at `step` what is in force, for one
    that ends in its warm-up how far that gets; else None."""
    schedule: dict[str, Any] = {"num_steps": num_steps, "warmup_steps": warmup_steps, "decay": decay}
    now, last = (base * factor(at, **schedule, reference_steps=reference_steps) for at in (step, num_steps - 1))
    if warmup_steps > num_steps:
        short = f"optimizer.warmup_steps={warmup_steps} is longer than the run of {num_steps} steps"
        return f"{short}: the learning rate ends at {last:.3g}, below optimizer.lr={base:g}"
    if step and (now, last) != (base, base):
        return f"the learning rate is {now:.3g} at step {step}, of optimizer.lr={base:g}, and {last:.3g} at the end"
    return None
