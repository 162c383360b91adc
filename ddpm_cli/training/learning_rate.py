"""The learning rate as a function of the step: a linear warm-up, then constant or a decay to zero at the run's end."""

import math

DECAYS = ("none", "linear", "cosine")


def factor(step: int, *, num_steps: int, warmup_steps: int, decay: str) -> float:
    """What the base learning rate is multiplied with at `step` (counted from 0): never 0 before the last step."""
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    done = max(0, step - warmup_steps) / max(1, num_steps - warmup_steps)
    if decay == "linear":
        return warm * (1 - min(done, 1.0))
    if decay == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return warm
