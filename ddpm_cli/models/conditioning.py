"""What a network is told besides the image: the time and, where it is class-conditional, the class."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# labels: (B,) int64, embedding: (B, E), augment: (B, A), vector: (B, D); all optional. The channels of a condition are
# part of x.
Cond = Mapping[str, Tensor] | None


class Network(Protocol):
    """What every network, an nn.Module, offers; these are the defaults for one that does not say."""

    class_conditional: bool = False  # whether cond tells it of classes
    num_classes: int = 0  # labels are 0..num_classes - 1; num_classes itself is the null label
    dims: int = 2  # of what it takes: 2 for images and spectra (C, H, W), 1 for waveforms (C, L)
    augment_dim: int = 0  # how many augmentation labels it takes; 0: it must not be shown augmented images

    def __call__(self, x: Tensor, time: Tensor, cond: Cond = None) -> Tensor: ...

    def check_input(self, shape: Sequence[int]) -> None:
        """Raise ValueError unless it takes items of `shape` (C, H, W), or (C, L)."""

    def project_weights(self) -> None:
        """Brings the weights back, in place, to where they must lie; called after every update of them."""

    def embed_labels(self, labels: Tensor) -> Tensor:
        """labels: (B,) in 0..num_classes -> (B, E), what cond["embedding"] may replace; CADS and exports ask for it."""
        raise NotImplementedError

    def diffusers_config(self) -> dict[str, Any]:
        """The settings with which diffusers' UNet2DModel is this network; ValueError where it cannot be."""
        raise ValueError(f"diffusers' UNet2DModel cannot be a {type(self).__name__}")


def linear(in_features: int, out_features: int, gain: float = 1.0, bias: bool = True) -> nn.Linear:
    """A linear layer initialised as in DDPM: fan-average uniform weights times `gain`, zero bias."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    nn.init.xavier_uniform_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def time_features(time: Tensor, channels: int, *, freq_shift: int = 1, flip_sin_to_cos: bool = False) -> Tensor:
    """time: (B,) real -> (B, channels) float32: sines, then cosines, of wavelengths 2 pi to 2 pi 10,000 (DDPM, B).

    freq_shift=0: the longest is a step short of 2 pi 10,000 (ADM); flip_sin_to_cos: the cosines come first.
    """
    half = channels // 2
    steps = torch.arange(half, dtype=torch.float32, device=time.device)
    angles = time.float()[:, None] * torch.exp(-math.log(10_000) * steps / (half - freq_shift))
    waves = [angles.sin(), angles.cos()]
    return torch.cat(waves[::-1] if flip_sin_to_cos else waves, dim=1)


class TimeEmbedding(nn.Module):
    """Two linear layers over the features of the time; named as in diffusers."""

    def __init__(self, channels: int, emb_channels: int) -> None:
        super().__init__()
        self.linear_1 = linear(channels, emb_channels)
        self.linear_2 = linear(emb_channels, emb_channels)

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, channels) -> (B, emb_channels)."""
        return self.linear_2(F.silu(self.linear_1(features)))


class ClassEmbedding(nn.Embedding):
    """One row a class; the null label, num_classes, has a row of its own, or is zero where the paper has none."""

    def __init__(self, num_classes: int, emb_channels: int, *, learned_null: bool = True) -> None:
        super().__init__(num_classes + int(learned_null), emb_channels)
        self.learned_null = learned_null

    def forward(self, labels: Tensor) -> Tensor:
        """labels: (B,) in 0..num_classes -> (B, emb_channels)."""
        if self.learned_null:
            return super().forward(labels)
        rows = super().forward(labels.clamp(max=self.num_embeddings - 1))
        return rows * (labels < self.num_embeddings).to(rows.dtype)[:, None]


class Conditional(nn.Module, Network):
    """What every network here shares: its channels, its classes and the vector that stands for a class."""

    class_embedding: nn.Embedding | None
    vector_embedding: nn.Module | None

    def __init__(
        self, in_channels: int, out_channels: int, *, num_classes: int | None, class_conditional: bool
    ) -> None:
        super().__init__()
        if class_conditional and not num_classes:
            raise ValueError(
                f"model.class_conditional=true needs classes, but the data set has num_classes={num_classes}; "
                "set model.class_conditional=false"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_classes = num_classes or 0
        self.class_conditional = class_conditional
        self.class_embedding = self.vector_embedding = None

    @property
    def null_label(self) -> int:
        """The label that means "no class"; cond None and cond without labels mean it too."""
        return self.num_classes

    def embed_labels(self, labels: Tensor) -> Tensor:
        assert self.class_embedding is not None, "not class-conditional"
        return self.class_embedding(labels)

    def with_vector(self, emb: Tensor, cond: Cond, add: Callable[[Tensor, Tensor], Tensor] = torch.add) -> Tensor:
        """emb (B, E) and the embedding of the vector given, added; of none, emb as it is."""
        if self.vector_embedding is None or not cond or "vector" not in cond:
            return emb
        return add(emb, self.vector_embedding(cond["vector"].to(emb.dtype)))

    def class_vector(self, cond: Cond, batch: int, device: torch.device) -> Tensor:
        """The embedding given, or that of the labels given, or the null label's: (B, E)."""
        cond = cond or {}
        if "embedding" in cond:
            return cond["embedding"].to(next(self.parameters()).dtype)
        labels = cond["labels"] if "labels" in cond else torch.full((batch,), self.null_label, device=device)
        return self.embed_labels(labels)
