"""What an invocation of ddpm-sample asks that its checkpoint cannot do: refused in a line before anything is drawn, or,
where it would merely change nothing, told in a line."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ddpm_cli.build.autoencoder import is_autoencoder
from ddpm_cli.build.instantiate import name_of
from ddpm_cli.build.load import Trained
from ddpm_cli.build.model import item_shape, null_label
from ddpm_cli.diffusion.editing import Edit, Source, refuse_noise
from ddpm_cli.diffusion.guidance import APG, CADS, Guidance
from ddpm_cli.diffusion.samplers import Consistency, Sampler
from ddpm_cli.diffusion.variance import Variance
from ddpm_cli.errors import UserError
from ddpm_cli.media.base import Medium

log = logging.getLogger("ddpm_cli")


@contextmanager
def refusals_told() -> Iterator[None]:
    """A ValueError of the mathematics, which knows of no users, becomes the user's mistake that it is here."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def wanted_labels(labels: Any, edit: Any) -> Any:
    """The labels as typed; where images are edited, or drawn from a condition, the null label unless others are asked
    for: nobody said what is in the images."""
    return "none" if labels is None and edit is not None else labels


def check_classes(cfg: dict[str, Any], cads: CADS, trained: Trained) -> None:
    """UserError where labels, or guidance by them, are asked of a model that never learned what they would need."""
    knobs, conditional = cfg["guidance"], null_label(trained.denoiser.network) is not None
    by_label = knobs["scale"] != 1 and knobs["guide_ckpt"] is None
    edited = cfg["edit"] if cfg["edit"] is not None else cfg.get("conditions")
    null = wanted_labels(cfg["labels"], edited) == "none"
    if not conditional and (cfg["labels"] not in (None, "none") or by_label or cads.noise):
        raise UserError(
            f"labels, guidance.scale and cads need a class-conditional model; {trained.path} is unconditional"
        )
    if conditional and trained.config.get("training", {}).get("label_dropout") == 0:
        why = "the model was trained with training.label_dropout=0 and never learned its null label"
        train = "train with training.label_dropout=0.1"
        if null:
            what = "an edit" if cfg["edit"] is not None else "conditions=PATH"
            key = "labels=none" if cfg["labels"] == "none" else f"{what} without labels"
            raise UserError(f"{key}: {why}; choose labels=each or labels=[3], or {train}")
        if by_label:  # away from what it draws for the null label
            raise UserError(
                f"guidance.scale={knobs['scale']:g}: {why}; {train}, or guide by guidance.guide_ckpt=CHECKPOINT"
            )
    others = knobs["guide_ckpt"] or knobs["interval"] or knobs["rescale"] or APG(**knobs["apg"]) != APG()
    if knobs["scale"] == 1 and others:
        log.warning("guidance.scale=1 is no guidance: guide_ckpt, interval, rescale and apg have no effect")
    void = [*(["guidance.scale"] if by_label else []), *(["guidance.cads"] if cads.noise else [])]
    if conditional and null and void:
        log.warning("labels=none: %s has no effect on the null label; choose labels=each", " and ".join(void))
    if not cads.noise and cads != CADS(noise=cads.noise):
        log.warning("guidance.cads.noise=0 is no noise: cads.start, cads.end and cads.mixing have no effect")


def check_variance(variance: Variance, trained: Trained, weights: str) -> None:
    """UserError where the checkpoint has not what a sigma_theta asked for is made of."""
    if variance.learned and type(variance) is not type(trained.denoiser.variance):
        raise UserError(
            "variance: this checkpoint's network has no such output; choose variance=fixed_small or fixed_large"
        )
    if variance.by_measurement and not variance.tables:
        raise UserError(
            f"variance=analytic has not been measured for {trained.path} (weights={weights}); "
            "run ddpm-analytic ckpt=CHECKPOINT first, or choose variance=fixed_small"
        )


def check_guide(guide: Trained, trained: Trained, knobs: dict[str, Any]) -> None:
    """UserError unless the model to guide by is of the same noise levels, image shape and classes; either may be
    unconditional, as it is then not shown the labels. Both on the CPU."""
    own, others = (null_label(model.denoiser.network) for model in (trained, guide))
    same = guide.config["schedule"] == trained.config["schedule"]
    same &= item_shape(guide.config) == item_shape(trained.config)
    same &= guide.config.get("condition") == trained.config.get("condition")
    same &= guide.config.get("representation") == trained.config.get("representation")
    if not same or (others is not None and own not in (None, others)):
        raise UserError(
            f"guidance.guide_ckpt={guide.path} has another schedule, image shape, condition or number of classes than "
            "ckpt; take an earlier checkpoint of the same run"
        )
    if knobs["scale"] == 1 or knobs["cads"]["noise"]:
        return
    a, b = (model.denoiser.network.state_dict() for model in (trained, guide))
    if a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a):
        log.warning("guidance.guide_ckpt=%s holds the same weights as ckpt: guidance.scale has no effect", guide.path)


def check_draws(trained: Trained) -> None:
    """UserError for what is no model of images or sounds."""
    if is_autoencoder(trained.config):
        raise UserError(
            f"{trained.path} is an autoencoder, which draws nothing by itself; train a model of its latents: "
            "ddpm-train representation=latents representation.autoencoder=PATH"
        )


def check_clip(clip: Any, medium: Medium) -> None:
    """UserError where there is nothing to clip to."""
    if clip in (True, "dynamic") and medium.limit != 1:
        raise UserError(f"clip={str(clip).lower()}: the model draws latents, which have no range; leave clip out")


def check_edit(edit: Edit | None, sampler: Sampler, trained: Trained, guidance: Guidance) -> None:
    """ValueError for an edit that cannot be made with this sampler on this schedule, or so guided; `edit` None: images
    from noise."""
    schedule, one = trained.denoiser.schedule, torch.zeros(1, 1, 1, 1)
    last = float(sampler.times(schedule)[-1])
    if last > 0:
        log.warning("sampler.spacing ends at t = %g: the images keep the noise of that time", last)
    if edit is not None and edit.inverts:  # no step may add noise, or stop short of 0
        refuse_noise(sampler, type(edit).__name__.lower())
        if last > 0:
            raise ValueError("sampler.spacing: a way to noise and back must end at 0")
        if guidance.scale != 1 and guidance.apg.momentum:
            raise ValueError("guidance.apg.momentum is of one walk, and this edit goes to noise and back: set it to 0")
    elif edit is not None:  # called, but asked for no step, as build_sampler does with the sampler
        source = Source(one, torch.ones_like(one, dtype=torch.bool))
        edit(trained.denoiser, sampler, schedule, trained.variance, lambda i: one, source)


def warn_of_unused_num_steps(cfg: dict[str, Any], typed_keys: Sequence[str]) -> None:
    """A line where num_steps was typed and a list of times decides how many steps there are."""
    spacing, num_steps = (cfg["sampler"].get(key) for key in ("spacing", "num_steps"))
    if isinstance(spacing, list) and "sampler.num_steps" in typed_keys and num_steps != len(spacing) - 1:
        log.warning("sampler.num_steps=%s has no effect: sampler.spacing lists %d steps", num_steps, len(spacing) - 1)


def tell_of_few_steps(sampler: Sampler, trained: Trained) -> None:
    """Warns where a model that was tuned for one or two steps is walked with many, or another with those few."""
    tuned = "loss" in trained.config and name_of(trained.config["loss"]) == "Consistency"
    if isinstance(sampler, Consistency) and not tuned:
        log.warning("sampler=consistency is for models tuned by loss=consistency; this one's first estimate is a blur")
    elif tuned and not isinstance(sampler, Consistency):
        log.warning("the model was tuned to draw in few steps: sampler=consistency sampler.num_steps=2")
