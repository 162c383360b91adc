"""Label accuracy: how often the extractor's classifier finds in an image the class that was asked for."""

from torch import Tensor

from ddpm_cli.evaluation.metrics.base import Score, checked, share


def accuracy(probabilities: Tensor, labels: Tensor) -> Score:
    """Of (n, K) class probabilities and the (n,) labels the images were drawn for. 0 to 1."""
    right = checked(probabilities, "probabilities").argmax(1) == labels
    return share(int(right.sum()), len(right), classes=probabilities.shape[1])
