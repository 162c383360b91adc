"""Features that take no training, and a command line composed in this process."""

import torch
from torch import Tensor

from ddpm_cli.cli.flags import with_quotes
from ddpm_cli.config.check import configuration
from ddpm_cli.evaluation.features.base import Extracted


def composed(command, *overrides):
    return configuration(command, *with_quotes(overrides))


class Projection:
    """Fixed random projections of the pixels, in place of a network's features."""

    name, resize, num_features = "projection", "none", 6

    def __init__(self, sha256="0" * 64, num_classes=4):
        self.sha256, self.num_classes, self.seen = sha256, num_classes, 0

    def describe(self):
        return {"name": self.name, "sha256": self.sha256, "resize": self.resize}

    def __call__(self, images: Tensor) -> Extracted:
        self.seen += len(images)
        x = images.flatten(1).double() / 255
        projection = torch.randn(x.shape[1], self.num_features, generator=torch.Generator().manual_seed(0)).double()
        found = (x @ projection).tanh().float()
        return Extracted(found, None if self.num_classes is None else found[:, : self.num_classes].softmax(1))
