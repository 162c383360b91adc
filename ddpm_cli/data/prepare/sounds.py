"""What the sets of sounds have in common: samples become what a representation makes of them, kept as float16."""

from typing import Any

import numpy as np
import torch

from ddpm_cli.errors import UserError
from ddpm_cli.media.representation import Representation


def check_representation(representation: Representation, channels: int) -> None:
    """UserError where the configuration states other channels than the representation makes."""
    if channels != representation.channels:
        made = f"{type(representation).__name__.lower()} makes {representation.channels}"
        raise UserError(f"dataset.channels={channels}: {made}; leave dataset.channels out")


def key_of(representation: Representation) -> dict[str, Any]:
    """What tells it from others, as plain values."""
    return {"name": type(representation).__name__, **vars(representation)}


def encoded(samples: np.ndarray, representation: Representation) -> np.ndarray:
    """(L,) float32 -> float16 of the representation's shape."""
    return representation.encode(torch.from_numpy(samples)[None])[0].half().numpy()
