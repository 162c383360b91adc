"""What can be said of two sets of features, in float64: pure functions, a module each.

Row i stands for image i, and the rows of a reference lie in random order, so that its first n stand for all. Nothing is
drawn: the same features give the same figures.
"""

from ddpm_cli.evaluation.metrics.base import Score, label_of
from ddpm_cli.evaluation.metrics.by_name import FEATURE_METRICS, FEWEST, OF_PROBABILITIES, check_probabilities, score

__all__ = ["FEATURE_METRICS", "FEWEST", "OF_PROBABILITIES", "Score", "check_probabilities", "label_of", "score"]
