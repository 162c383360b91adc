"""All that a run is at a step: what a checkpoint holds and a resumed run starts from."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

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

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Strict: every entry must be there and fit."""
        self.network.load_state_dict(saved["network"])
        for name, ema in self.emas.items():
            ema.network.load_state_dict(saved["emas"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(saved["scaler"])
        for name, module in self.learned.items():
            module.load_state_dict(saved["learned"][name])
        self.step = saved["step"]
