"""The passes over images: what is found of each, batch by batch, and kept at once.

A batch is a function of its images' numbers, and nothing of it depends on another: so a pass that was interrupted goes
on with what is missing, and ranks share it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from ddpm_cli.evaluation.features.base import Features
from ddpm_cli.evaluation.kept import PIXELS, Arrays, Kept
from ddpm_cli.evaluation.likelihood import Likelihood
from ddpm_cli.evaluation.source import Source
from ddpm_cli.sampling.share import Share

Look = Callable[[], None]  # raises what is to end the work: called as often as can be
EVALUATIONS = "evaluations"  # of the network, for an image


@dataclass(frozen=True)
class Pass:
    """What is found of the images with given numbers, and where it is kept."""

    kept: Kept
    find: Callable[[Sequence[int], Look], Arrays]


Batch = tuple[str, list[int]]  # the name of a pass, and numbers


def carry_out(passes: Mapping[str, Pass], batches: Sequence[Batch], share: Share) -> None:
    """This rank's part: each batch is written as soon as it is done, so that to be ended costs one at most."""
    for number in share.numbers(len(batches)):
        name, indices = batches[number]
        passes[name].kept.add(indices, passes[name].find(indices, share.look))
        share.tell(len(indices))


def over_images(kept: Kept, source: Source, features: Features) -> Pass:
    """Features, probabilities where there are any, pixels, and what an image cost."""

    def find(indices: Sequence[int], look: Look) -> Arrays:
        images, labels, evaluations = source.images(indices, look)
        found = features(images)
        arrays = {PIXELS: _numpy(images), EVALUATIONS: np.full(len(indices), evaluations)}
        arrays["features"] = _numpy(found.features)
        if labels is not None:
            arrays["labels"] = _numpy(labels)
        return arrays if found.probabilities is None else {**arrays, "probabilities": _numpy(found.probabilities)}

    return Pass(kept, find)


def over_held_out(kept: Kept, likelihood: Likelihood) -> Pass:
    """The terms of the likelihood of held-out images."""

    def find(indices: Sequence[int], look: Look) -> Arrays:
        with _at_each_call(likelihood.denoiser.network, look):
            return {name: _numpy(value) for name, value in likelihood(indices).items()}

    return Pass(kept, find)


@contextmanager
def _at_each_call(network: nn.Module, look: Look) -> Iterator[None]:
    hook = network.register_forward_pre_hook(lambda *_: look())
    try:
        yield
    finally:
        hook.remove()


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
