"""Layers that keep the magnitude of what goes through them, the root of its mean square (Karras et al. 2024, config G).

Nothing has a bias, and weights are directions: each vector of them is of unit magnitude wherever it is used, so that
the learning rate alone says how fast it turns.
"""

import math
from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-4  # beside a magnitude of one
_SILU = 0.596  # the magnitude of SiLU of a standard normal


def normalised(x: Tensor, *dims: int) -> Tensor:
    """x with a magnitude of one over these dimensions, all but the first unless others are named."""
    dims = dims or tuple(range(1, x.ndim))
    exact = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=exact)
    size = math.prod([x.shape[dim] for dim in dims])
    return x / (norm * size**-0.5 + _EPS).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU, divided by what it makes of a standard normal's magnitude (Eq. 81)."""
    return F.silu(x) / _SILU


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """a and b, uncorrelated, in the shares 1 - t and t (Eq. 88)."""
    scale = math.hypot(1 - t, t)
    return torch.add(a * ((1 - t) / scale), b, alpha=t / scale)


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    """Channels of a, then of b: (B, A, ...), (B, C, ...) -> (B, A + C, ...), both of equal weight however many channels
    they have (Eq. 103 with t = 1/2)."""
    channels = a.shape[1] + b.shape[1]
    return torch.cat([x * math.sqrt(channels / (2 * x.shape[1])) for x in (a, b)], dim=1)


class MPConv(nn.Module):
    """A convolution, or with kernel=None a linear layer, whose weights are normalised on use (Eq. 47): (B, in, H, W)
    -> (B, out, H, W), or (..., in) -> (..., out)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int | None = None) -> None:
        super().__init__()
        self.kernel = kernel
        size = () if kernel is None else (kernel, kernel)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *size))

    def forward(self, x: Tensor) -> Tensor:
        weight = (normalised(self.weight) * self.weight[0].numel() ** -0.5).to(x.dtype)
        return F.linear(x, weight) if self.kernel is None else F.conv2d(x, weight, padding=self.kernel // 2)


class MPClassEmbedding(nn.Embedding):
    """One row a class, and one for the null label, num_classes; each feature is normalised over the classes, as that of
    a linear layer of one-hot labels is."""

    def __init__(self, num_classes: int, emb_channels: int) -> None:
        super().__init__(num_classes + 1, emb_channels)

    def forward(self, labels: Tensor) -> Tensor:
        """labels: (B,) in 0..num_classes -> (B, emb_channels)."""
        return F.embedding(labels, normalised(self.weight, 0))


class MPFourier(nn.Module):
    """Random Fourier features of the time (Eq. 75); bandwidth: the standard deviation of their frequencies."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, channels: int, bandwidth: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * bandwidth * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, time: Tensor) -> Tensor:
        """time: (B,) real -> (B, channels) float32."""
        return math.sqrt(2) * torch.cos(time.float()[:, None] * self.frequencies + self.phases)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Where a network is converted to another precision, these move along in their own: rounded, a frequency would
        be another one."""
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self


@torch.no_grad()
def force_normalised(network: nn.Module) -> None:
    """Sets the weights of all these layers to a magnitude of one, but for those that are frozen (Eq. 66)."""
    for module in network.modules():
        if isinstance(module, MPConv) and module.weight.requires_grad:
            module.weight.copy_(normalised(module.weight))
        elif isinstance(module, MPClassEmbedding) and module.weight.requires_grad:
            module.weight.copy_(normalised(module.weight, 0))
