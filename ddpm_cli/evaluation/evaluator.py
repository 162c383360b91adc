"""What images are measured with, made once for as many sets of images as there are to compare."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.data.store import Store
from ddpm_cli.evaluation.cache import cache_dir_of
from ddpm_cli.evaluation.features.base import Extracted, Features, build_features
from ddpm_cli.evaluation.metrics import OF_PROBABILITIES, Score, check_probabilities, score
from ddpm_cli.evaluation.reference import Reference, reference
from ddpm_cli.sampling.checks import refusals_told


@dataclass(frozen=True)
class Evaluator:
    """Scores of images against the reference, by the metrics that are functions of features."""

    features: Features
    reference: Reference
    metrics: Sequence[str]  # fid, kid, inception_score, precision_recall

    def scores(self, found: Extracted) -> dict[str, Score]:
        """By name; a metric may give several. Rows in the order of the images' numbers. ValueError for what these
        features cannot tell."""
        scores: dict[str, Score] = {}
        for name in self.metrics:
            scores |= score(name, found.features, found.probabilities, self.reference.features, found.labels)
        return scores

    @torch.inference_mode()
    def __call__(
        self, draw: Callable[[Sequence[int]], tuple[Tensor, Tensor | None]], num_images: int, batch_size: int
    ) -> dict[str, Score]:
        """Of the images that `draw` gives for their numbers, as files hold them, and the labels they were drawn for: in
        training, where nothing is kept."""
        numbers = range(num_images)
        batches = [numbers[start : start + batch_size] for start in range(0, num_images, batch_size)]
        return self.scores(joined([self._found(*draw(indices)) for indices in batches]))

    def _found(self, items: Tensor, labels: Tensor | None) -> Extracted:
        return replace(self.features(items), labels=labels)


def build_evaluator(cfg: dict[str, Any], metrics: Sequence[str], store: Store, device: torch.device) -> Evaluator:
    """For these metrics, against the images of `store`; UserError where its features cannot give one.

    cfg: of it `features`, `dataset` (that of the store) and `trust` count. What is learnt and found of the store is
    kept in the data's cache.
    """
    cache = cache_dir_of(cfg["dataset"])
    features = build_features(cfg["features"], store, device, cfg["trust"], cache)
    with refusals_told():
        for name in set(metrics) & set(OF_PROBABILITIES):
            check_probabilities(name, features.num_classes is not None)
    split = cfg["dataset"].get("split", "all")
    return Evaluator(features, reference(store, features, cache, split=split), metrics)


def joined(parts: Sequence[Extracted]) -> Extracted:
    """The rows of several batches."""
    features = torch.cat([part.features for part in parts])
    probabilities = [part.probabilities for part in parts if part.probabilities is not None]
    labels = [part.labels for part in parts if part.labels is not None]
    return Extracted(
        features, torch.cat(probabilities) if probabilities else None, torch.cat(labels) if labels else None
    )
