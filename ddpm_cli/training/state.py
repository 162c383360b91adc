"""All that a run is at a step: what a checkpoint holds and a resumed run starts from."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ddpm_cli.errors import UserError
from ddpm_cli.training.ema import EMA


@dataclass
class TrainState:
    """`step` counts the optimiser steps made. `learned` are further modules with state (a weighting or a timesteps
    distribution that learns), by name; their parameters are trained with the network's."""

    network: nn.Module
    emas: dict[str, EMA]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    learned: dict[str, nn.Module] = field(default_factory=dict)
    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values alone."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "emas": {name: ema.network.state_dict() for name, ema in self.emas.items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "learned": {name: module.state_dict() for name, module in self.learned.items()},
        }

    def to_bytes(self) -> bytes:
        """The state as a file would hold it: a copy on the CPU, in no memory of the device."""
        file = io.BytesIO()
        torch.save(self.state_dict(), file)
        return file.getvalue()

    def load_bytes(self, content: bytes) -> None:
        self.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Strict: every entry must be there and fit, or it is a UserError."""
        try:
            self._load(saved)
        except UserError:
            raise
        except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise UserError(
                f"the checkpoint's state does not fit this run ({type(error).__name__}: {str(error)[:200]})\n"
                "start a new run with init=CHECKPOINT to use its weights"
            ) from error

    def _load(self, saved: Mapping[str, Any]) -> None:
        lacking = [key for key in self.state_dict() if key not in saved]
        lacking += [f"emas.{name}" for name in self.emas if name not in saved.get("emas", {})]
        lacking += [f"learned.{name}" for name in self.learned if name not in saved.get("learned", {})]
        if lacking:
            raise UserError(f"the checkpoint lacks {', '.join(lacking[:3])}; it cannot be resumed, only used by init=")
        self._check_optimizer(saved["optimizer"])
        self.network.load_state_dict(saved["network"])
        for name, ema in self.emas.items():
            ema.network.load_state_dict(saved["emas"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(saved["scaler"])
        for name, module in self.learned.items():
            module.load_state_dict(saved["learned"][name])
        self.step = saved["step"]

    def _check_optimizer(self, saved: dict[str, Any]) -> None:
        """torch would take an optimiser's state of any shape, and of any other optimiser."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for group, mine in zip(saved["param_groups"], self.optimizer.param_groups, strict=True):
            if group.keys() != mine.keys():
                differing = sorted(group.keys() ^ mine.keys())
                raise UserError(f"the checkpoint is of another optimizer: {', '.join(map(str, differing[:3]))}")
        for index, entries in saved["state"].items():
            for name, value in entries.items():
                if isinstance(value, torch.Tensor) and value.ndim and value.shape != parameters[index].shape:
                    raise UserError(
                        f"the checkpoint's optimizer.{name} of parameter {index} is {tuple(value.shape)}, "
                        f"the parameter {tuple(parameters[index].shape)}"
                    )
