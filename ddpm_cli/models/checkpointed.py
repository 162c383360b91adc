"""Activation checkpointing (Chen et al. 2016): blocks that compute twice what they would otherwise have to remember."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Checkpointed(nn.Module):
    """A block that with `checkpointing` keeps its inputs alone for the backward pass, which then computes the rest once
    more: the same bits, dropout among them, for about a third more work and a fraction of the memory."""

    checkpointing = False

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            result: Any = checkpoint(self.compute, *inputs, use_reentrant=False)
            return result
        return self.compute(*inputs)

    def compute(self, *inputs: Any) -> Tensor:
        raise NotImplementedError


def checkpoint_blocks(network: nn.Module, wanted: bool) -> None:
    """Switches all such blocks of a network on or off."""
    for module in network.modules():
        if isinstance(module, Checkpointed):
            module.checkpointing = wanted
