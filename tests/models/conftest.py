"""Shared by the tests of the networks."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

CONFIGS = Path(__file__).parents[2] / "configs" / "model"


@pytest.fixture
def preset() -> Callable[..., nn.Module]:
    """preset(name, in_channels, out_channels, num_classes, **changes): a network of configs/model."""

    def build(name, in_channels=3, out_channels=None, num_classes=10, **changes):
        dataset = {"channels": in_channels, "num_classes": num_classes}
        config = OmegaConf.create({"dataset": dataset, "model": OmegaConf.load(CONFIGS / f"{name}.yaml")})
        return instantiate(config.model, out_channels=out_channels or in_channels, **changes)

    return build


@pytest.fixture
def awake() -> Callable[[nn.Module], nn.Module]:
    """awake(network): with weights instead of the zeros it starts from, so that every branch counts; in eval mode."""

    def fill(network):
        for parameter in network.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.normal_(parameter, parameter.mean().item(), 0.1)
        return network.eval()

    return fill
