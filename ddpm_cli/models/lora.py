"""LoRA, low-rank adaptation (Hu et al. 2021): beside some layers of a trained network stand two small matrices, which
learn, while the network's own weights stay as they are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION = ("to_q", "to_k", "to_v", "to_out", "qkv", "proj")  # its projections, in the U-Nets and in DiT


@dataclass(frozen=True)
class LoRA:
    """h = W_0 x + (alpha / rank) B A x in the layers named (Hu et al. 2021, Eq. 3); B begins as zero.

    targets: parts of a layer's dotted name; None: ATTENTION. also: modules that are trained whole, by the same rule;
    None: the class embedding, whose rows are what new classes are told by.
    """

    rank: int
    alpha: float
    targets: Sequence[str] | None = None
    also: Sequence[str] | None = None

    def attach(self, network: nn.Module) -> None:
        """Freezes all but what is to be trained, and lets the layers compute h; the output is what it was. ValueError
        names a target that is neither a linear layer nor a convolution, and holds none."""
        layers = {name: layer for name, layer in network.named_modules() if _fits(layer)}
        _check("targets", self.targets or (), layers, "layer")
        _check("also", self.also or (), [name for name, _ in network.named_parameters()], "weights")
        chosen = [layer for name, layer in layers.items() if _is_within(name, self.targets or ATTENTION)]
        if not chosen:
            there = ",".join(_last_words(layers))
            raise ValueError(f"the network has no attention; type layers that it has: adapter.targets=[{there}]")
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(self.trains(name))
        for layer in chosen:
            weight, wide = layer.weight, layer.weight[0].numel()
            a = nn.init.normal_(weight.new_empty(self.rank, wide), std=wide**-0.5)  # A x is of x's size
            layer.lora_A, layer.lora_B = nn.Parameter(a), nn.Parameter(weight.new_zeros(len(weight), self.rank))
            layer.register_forward_hook(self._add)

    def _add(self, layer: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """Does not know its layer, so that it serves a copied network as well."""
        x, a, b = inputs[0], layer.lora_A.view(-1, *layer.weight.shape[1:]), layer.lora_B
        if isinstance(layer, nn.Linear):
            added = F.linear(F.linear(x, a), b)
        else:  # A looks at as many pixels as the layer, B at one
            added = F.linear(layer._conv_forward(x, a, None).movedim(1, -1), b).movedim(-1, 1)
        return torch.add(output, added, alpha=self.alpha / self.rank)

    def trains(self, name: str) -> bool:
        """Whether the parameter of this name is trained."""
        return is_adapter(name) or _is_within(name, ("class_embedding",) if self.also is None else self.also)

    def merged(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of the network without adapters that computes the same: W_0 + (alpha / rank) B A. ValueError
        where they do not fit one another."""
        plain = {name: weight for name, weight in weights.items() if not is_adapter(name)}
        for layer in dict.fromkeys(name.rpartition(".")[0] for name in weights if is_adapter(name)):
            w, a, b = (weights.get(f"{layer}.{leaf}") for leaf in ("weight", "lora_A", "lora_B"))
            if w is None or a is None or b is None or w.ndim < 2:
                raise ValueError(f"{layer} lacks one of weight, lora_A and lora_B")
            wide = w[0].numel()
            if a.shape != (self.rank, wide) or b.shape != (len(w), self.rank):
                raise ValueError(f"{layer} has adapters of {tuple(a.shape)} and {tuple(b.shape)} for {tuple(w.shape)}")
            added = (b.double() @ a.double()).mul(self.alpha / self.rank).view(w.shape)
            plain[f"{layer}.weight"] = (w.double() + added).to(w.dtype)
        return plain


def is_adapter(name: str) -> bool:
    """Whether an entry of a state dict is a matrix of an adapter's."""
    return name.endswith((".lora_A", ".lora_B"))


def _fits(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.groups == 1)


def _is_within(name: str, parts: Sequence[str]) -> bool:
    return any(f".{part}." in f".{name}." for part in parts)


def _check(key: str, parts: Sequence[str], names: Any, what: str) -> None:
    """ValueError for a part that no name has."""
    for part in parts:
        if not any(_is_within(name, (part,)) for name in names):
            own = _last_words(names) if key == "targets" else dict.fromkeys(name.split(".")[0] for name in names)
            there = ", ".join(own)
            raise ValueError(f"adapter.{key}: the network has no {what} in {part}; it has {there}")


def _last_words(names: Iterable[str]) -> list[str]:
    """What layers are called within their modules, each once."""
    return list(dict.fromkeys(next(word for word in reversed(name.split(".")) if not word.isdigit()) for name in names))
