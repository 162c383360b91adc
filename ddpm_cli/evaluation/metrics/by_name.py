"""The metrics by the names that a command line has for them."""

from torch import Tensor

from ddpm_cli.evaluation.metrics.accuracy import accuracy
from ddpm_cli.evaluation.metrics.base import Score
from ddpm_cli.evaluation.metrics.fid import fid
from ddpm_cli.evaluation.metrics.inception_score import inception_score
from ddpm_cli.evaluation.metrics.kid import kid
from ddpm_cli.evaluation.metrics.precision_recall import NEIGHBOURS, precision_recall

FEATURE_METRICS = ("fid", "kid", "inception_score", "precision_recall", "accuracy")
OF_PROBABILITIES = ("inception_score", "accuracy")
_HAVING_CLASSES = {"inception_score": "features=inception", "accuracy": "data with classes and features=classifier"}
# The fewest images that each can be had of: for a variance, a jackknife, and neighbours beyond the third.
FEWEST = {"fid": 2, "kid": 3, "inception_score": 2, "precision_recall": NEIGHBOURS + 2, "accuracy": 2}


def score(
    name: str, features: Tensor, probabilities: Tensor | None, reference: Tensor, labels: Tensor | None = None
) -> dict[str, Score]:
    """The figures of one metric, by their names: precision_recall has two. ValueError where these features do not allow
    it.

    features (n, D), probabilities (n, K) and labels (n,) of the same images, reference (N, D) in random order.
    """
    if name in OF_PROBABILITIES:
        check_probabilities(name, probabilities is not None)
        assert probabilities is not None
        if name == "inception_score":
            return {name: inception_score(probabilities)}
        if labels is None:
            raise ValueError("accuracy is of images drawn for a class, and these were drawn for none; leave it out")
        return {name: accuracy(probabilities, labels)}
    if name == "precision_recall":
        return precision_recall(features, reference)
    return {name: {"fid": fid, "kid": kid}[name](features, reference)}


def check_probabilities(name: str, there: bool) -> None:
    """ValueError for a metric of class probabilities of features without them (Features.num_classes is None)."""
    if not there:
        raise ValueError(
            f"{name} needs class probabilities, and these features have none; "
            f"leave it out of metrics, or choose {_HAVING_CLASSES[name]}"
        )
