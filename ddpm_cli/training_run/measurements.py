"""What a run measures of itself besides its steps: errors on fixed images, and metrics of the images that it draws."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddpm_cli.build.autoencoder import is_of_latents
from ddpm_cli.build.averages import build_averaging
from ddpm_cli.build.model import build_medium, null_label
from ddpm_cli.build.trainer import Parts, build_conditions, build_data, build_files
from ddpm_cli.config.figures import FIGURES, HIGHER_IS_BETTER
from ddpm_cli.data.conditions import Conditions
from ddpm_cli.data.store import Store
from ddpm_cli.diffusion.denoiser import Denoiser, clipped
from ddpm_cli.diffusion.samplers import Sampler
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.media.base import Medium
from ddpm_cli.run_dir import snapshots
from ddpm_cli.sampling.checks import refusals_told
from ddpm_cli.sampling.conditions import Given, cond_of, given_by_data, held_out
from ddpm_cli.sampling.generate import ImageNoise, choose_labels, walk
from ddpm_cli.system.memory import out_of_memory_told
from ddpm_cli.training.ema import Averaging
from ddpm_cli.training.level_errors import FixedImages, LevelErrors
from ddpm_cli.training.loop import Measurement, Objective
from ddpm_cli.training.state import TrainState

if TYPE_CHECKING:
    from ddpm_cli.evaluation.evaluator import Evaluator
    from ddpm_cli.evaluation.likelihood import Likelihood
    from ddpm_cli.evaluation.metrics import Score

log = logging.getLogger("ddpm_cli")
_EVALUATION = "evaluation"

Config = dict[str, Any]


def objective(cfg: Config) -> Objective | None:
    """By what best.pt is kept, as training.keep_best names it."""
    name = cfg["training"]["keep_best"]
    if name is None:
        return None
    evaluated = any(name in figures for figures in FIGURES.values())
    return Objective(name, name in HIGHER_IS_BETTER, _EVALUATION if evaluated else None)


def build_measurements(
    cfg: Config, parts: Parts, store: Store, averaged: Denoiser, batch_size: int, run: Path
) -> list[Measurement]:
    """Those that are asked for, of the averaged weights, and what is kept of these in the run's folder; UserError where
    a metric cannot be had. batch_size: how many images at once are no more than a step has."""
    device, found = parts.machine.device, []
    every = cfg["training"]["heldout_every"]
    asked = cfg["eval_every"] is not None
    heldout = _heldout(cfg) if every or asked else None
    if heldout is None and cfg["training"]["keep_best"] == "v_error_heldout":
        raise UserError("training.keep_best=v_error_heldout needs a test split, which these data lack; set it to loss")
    if every:
        sets = {"train": store} | ({"heldout": heldout} if heldout is not None else {})
        told = {split: _conditions(cfg, split, images) for split, images in sets.items()}
        fixed = {split: FixedImages.of(images, device, told[split]) for split, images in sets.items()}
        errors = LevelErrors(fixed, null_label(averaged.network), min(batch_size, 64))
        found.append(Measurement(every, "held-out loss", lambda state: errors(averaged)))
    averaging = build_averaging(cfg)
    if averaging.snapshots:
        every_snapshot = max(1, round(cfg["training"]["num_steps"] / averaging.snapshots))
        found.append(Measurement(every_snapshot, "snapshot of the averages", partial(_snapshot, run, averaging)))
    if asked:
        evaluation = _evaluation(cfg, parts, store, heldout, averaged)
        found.append(Measurement(cfg["eval_every"], _EVALUATION, evaluation))
    return found


def _snapshot(run: Path, averaging: Averaging, state: TrainState) -> dict[str, float]:
    averages = {name: ema.network.state_dict() for name, ema in state.emas.items()}
    snapshots.save(run, state.step, averaging.tracked, averages)
    return {}


def _heldout(cfg: Config) -> Store | None:
    """The test split of what a run trains on, where there is one; that it is lacking ends no run."""
    if cfg["dataset"].get("split") != "train":
        return None
    try:
        store = build_data(_of_test(cfg))
        _conditions(cfg, "heldout", store)  # without its conditions an image is of no use
        return store
    except (UserError, WorldError) as error:
        log.warning("no held-out loss, as there is no test split: %s", str(error).splitlines()[0])
        return None


def _conditions(cfg: Config, split: str, store: Store) -> Conditions | None:
    """Of the images of a split: train or heldout."""
    return build_conditions(_of_test(cfg) if split == "heldout" else cfg, store)


def _of_test(cfg: Config) -> Config:
    """Images as they are: of latents the set would hold the mirror images too."""
    return {**cfg, "dataset": {**cfg["dataset"], "split": "test", "flip": False}}


def _evaluation(
    cfg: Config,
    parts: Parts,
    store: Store,
    heldout: Store | None,
    averaged: Denoiser,
) -> "Evaluation":
    asked, device = cfg["eval"], parts.machine.device
    evaluator, likelihood, given = None, None, given_by_data(cfg, held_out(cfg))
    if drawn := [name for name in asked["metrics"] if name != "nll"]:
        from ddpm_cli.evaluation.evaluator import build_evaluator
        from ddpm_cli.evaluation.features.base import Extracted

        unknown = null_label(averaged.network) is None and (given is None or given.labels_of([0]) is None)
        if "accuracy" in drawn and unknown:
            raise UserError("eval.metrics: accuracy is of images drawn for a class, and this model knows none")
        evaluator = build_evaluator(cfg, drawn, build_files(cfg) if is_of_latents(cfg) else store, device)
        with refusals_told():  # what these features cannot tell is known of real images
            real, some = evaluator.reference, slice(asked["num_images"])
            rest = (None if part is None else part[some] for part in (real.probabilities, real.labels))
            evaluator.scores(Extracted(real.features[some], *rest))
    if "nll" in asked["metrics"]:
        from ddpm_cli.evaluation.likelihood import Likelihood

        if store.medium.one == "sound":
            raise UserError("eval.metrics: nll is of images, whose pixels are whole numbers; leave it out")
        if store.items.dtype != torch.uint8:
            raise UserError(f"eval.metrics: nll is of pixels of 8 bits, and {store.name} holds others; leave it out")
        if heldout is None:
            raise UserError("eval.metrics: nll is of a test split, which these data have none of; leave it out")
        knobs = {key: value for key, value in asked["nll"].items() if key != "num_images"}
        knobs["conditions"] = _conditions(cfg, "heldout", heldout)
        likelihood = Likelihood(averaged, averaged.variance, heldout, asked["seed"], device, **knobs)
    images = 0 if heldout is None else min(asked["nll"]["num_images"], len(heldout))
    return Evaluation(
        averaged, parts.sampler, build_medium(cfg), asked["seed"], asked["num_images"], asked["batch_size"], device,
        evaluator, likelihood, images, given,
    )  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """The metrics of the averaged weights at a step: images drawn as a preview's are, but of classes at random."""

    averaged: Denoiser
    sampler: Sampler
    medium: Medium
    seed: int
    num_images: int
    batch_size: int
    device: torch.device
    evaluator: "Evaluator | None"  # of what is drawn
    likelihood: "Likelihood | None"  # of what is held out
    num_heldout: int
    given: Given | None = None  # what images are drawn from, of a model with a condition

    def __call__(self, state: TrainState) -> dict[str, float]:
        """By NAME, NAME_low and NAME_high; nothing where the images allow no figure, as an untrained model's may."""
        try:
            with out_of_memory_told(self._out_of_memory_words):
                scores = self._scores()
        except ValueError as error:
            log.warning("step %d  no evaluation: %s", state.step, error)
            return {}
        from ddpm_cli.evaluation.metrics import label_of

        told = [
            f"{label_of(name, score.n)} {score.value:.4g} ({score.low:.4g} to {score.high:.4g})"
            for name, score in scores.items()
        ]
        log.info("step %d  %s", state.step, ", ".join(told))
        ends = (("", "value"), ("_low", "low"), ("_high", "high"))
        return {f"{name}{end}": vars(score)[key] for name, score in scores.items() for end, key in ends}

    def _scores(self) -> "dict[str, Score]":
        scores: dict[str, Score] = {}
        if self.evaluator is not None:
            scores |= self.evaluator(self._draw, self.num_images, self.batch_size)
        if self.likelihood is not None:
            parts = [self.likelihood(rows) for rows in _batches(self.num_heldout, self.batch_size)]
            scores |= self.likelihood.scores({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        return scores

    def _draw(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The images of these numbers, as files hold them, and their labels."""
        classes = null_label(self.averaged.network)
        labels = None if self.given is None else self.given.labels_of(indices)
        if classes is not None and labels is None:
            labels = choose_labels(None, indices, classes, self.seed)
        cond = cond_of(None if classes is None else labels, self.given, indices, self.device)
        noise = ImageNoise(self.seed, indices, self.medium.item_shape, self.device)
        denoiser, denoise = self.averaged, clipped(self.averaged, self.medium.limit)
        for step in walk(denoise, self.sampler, denoiser.schedule, denoiser.variance, noise, cond):
            last = step.x
        return self.medium.to_file(last), labels

    def _out_of_memory_words(self) -> tuple[str, str]:
        doing = f"in an evaluation with {self.batch_size} images at once"
        smaller = max(1, self.batch_size // 4)
        return doing, f"go on with resume= and eval.batch_size={smaller} (the training stays the same)"


def _batches(total: int, size: int) -> list[range]:
    return [range(start, min(start + size, total)) for start in range(0, total, size)]
