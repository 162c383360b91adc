"""A network as a graph of operators, for any number of items at once: what programs without this one can run.

As torch.export's own archive, model.pt2, and what ONNX is made of.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ddpm_cli.formats.header import OURS

Call = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (x, time, labels) -> the network's output


class _Called(nn.Module):
    """A network as a module of tensors alone, by the names that diffusers has for them."""

    def __init__(self, call: Call, network: nn.Module):
        super().__init__()
        self.call, self.network = call, network

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return self.call(sample, timestep, class_labels)


@torch.no_grad()
def traced(call: Call, network: nn.Module, shape: tuple[int, ...], times: Tensor, labelled: bool) -> ExportedProgram:
    """shape: of one item. times: (B,) that the network may be told, to trace it with; B is left open."""
    inputs = [torch.randn(len(times), *shape), times]
    inputs += [torch.zeros(len(times), dtype=torch.long)] if labelled else []
    batch = Dim("batch")
    shapes = tuple({0: batch} for _ in inputs)
    return torch.export.export(_Called(call, network).eval(), tuple(inputs), dynamic_shapes=shapes)


def write(file: Path, program: ExportedProgram, told: dict[str, Any]) -> None:
    torch.export.save(program, file, extra_files={OURS: json.dumps(told)})


def opened(file: Path) -> Call:
    module = torch.export.load(file).module()
    return lambda x, time, labels: module(*[tensor for tensor in (x, time, labels) if tensor is not None])
