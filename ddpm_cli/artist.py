"""A trained denoiser with all that an invocation of ddpm-sample asked for: labels, guidance, clipping, an edit."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_cli import build, checkpoint, plan
from ddpm_cli.diffusion.denoiser import Cond, Denoise, Denoiser, clipped, thresholded
from ddpm_cli.diffusion.editing import Source, refuse_noise
from ddpm_cli.diffusion.guidance import CADS, Guidance, annealed, by_weaker_model, classifier_free, guided
from ddpm_cli.diffusion.samplers import SamplerStep
from ddpm_cli.edit_images import Gallery, load_gallery
from ddpm_cli.errors import UserError
from ddpm_cli.generation import ClassNoise, ImageNoise, choose_labels, walk
from ddpm_cli.runtime import PRECISIONS

log = logging.getLogger("ddpm_cli")
_NAMES_SHOWN = 20  # of classes, in a message


@dataclass(frozen=True)
class Artist:
    """Draws the images of given numbers; image k is a function of the seed and k."""

    trained: build.Trained
    sampler: Any
    device: torch.device
    seed: int
    labels: Any
    clip: Any  # True, False, "dynamic"
    guidance: Guidance
    guide: Denoiser | None = None
    cads: CADS | None = None
    edit: Any = None
    gallery: Gallery | None = None

    @property
    def num_classes(self) -> int | None:
        """None for an unconditional model."""
        return build.null_label(self.trained.denoiser.network)

    def labels_of(self, indices: Sequence[int]) -> Tensor | None:
        """(B,) int64, None for an unconditional model; one label for all that is between two images."""
        if self.num_classes is None:
            return None
        wanted = wanted_labels(self.labels, self.edit)
        frames = self.gallery.frames if self.gallery is not None else 1
        return choose_labels(wanted, [k // frames for k in indices], self.num_classes, self.seed)

    def walk(self, indices: Sequence[int]) -> Iterator[SamplerStep]:
        """The steps of the images numbered `indices`, together."""
        labels = self.labels_of(indices)
        cond: Cond = None if labels is None else {"labels": labels.to(self.device)}
        schedule, shape = self.trained.denoiser.schedule, build.item_shape(self.trained.config)
        denoise = self._denoise(indices)
        if self.edit is None or self.gallery is None:
            return walk(
                denoise,
                self.sampler,
                schedule,
                self.trained.variance,
                item_shape=shape,
                seed=self.seed,
                indices=indices,
                cond=cond,
                device=self.device,
            )
        noise = ImageNoise(self.seed, indices, shape, self.device)
        source = self.gallery.rows(indices, self.device)
        return self.edit(
            lambda x_t, t: denoise(x_t, t, cond), self.sampler, schedule, self.trained.variance, noise, source
        )

    def _denoise(self, indices: Sequence[int]) -> Denoise:
        denoiser = self.trained.denoiser
        denoise: Denoise = denoiser
        if self.cads is not None:
            embed: Any = denoiser.network.embed_labels
            draw, total = ClassNoise(self.seed, indices), denoiser.schedule.num_timesteps
            denoise = annealed(denoise, self.cads, embed, draw, total, self.num_classes or 0)
        if self.guide is not None:
            pair = by_weaker_model(denoise, self.guide)
        else:
            pair = classifier_free(denoise, self.num_classes or 0)
        denoise = guided(denoise, pair, self.guidance, denoiser.schedule)
        if not self.clip or getattr(self.edit, "inverts", False):  # clipped, the way to noise and back are not the same
            return denoise
        return thresholded(denoise) if self.clip == "dynamic" else clipped(denoise)


def build_artist(cfg: dict[str, Any], path: Path) -> Artist:
    """Loads the checkpoint and joins it with what the invocation asks for; UserError where they do not go together."""
    trained = build.load_trained(path, cfg["weights"], cfg["variance"], cfg["trust"])
    denoiser, knobs = trained.denoiser, cfg["guidance"]
    try:
        _check_classes(cfg, trained, path)
    except ValueError as error:
        raise error if isinstance(error, UserError) else UserError(str(error)) from error
    flops = plan.forward_flops(denoiser.network, build.item_shape(trained.config))
    machine = plan.choose_machine({**cfg, "compile": False}, flops)
    guide = None if knobs["guide_ckpt"] is None else _load_guide(cfg, trained)
    for model in (denoiser, guide):
        if model is not None:
            model.to(machine.device)
            model.amp_dtype = PRECISIONS[machine.precision]
    edit = cfg["edit"] and build.make("edit", cfg["edit"], cfg["trust"])
    try:
        artist = Artist(
            trained,
            build.build_sampler(cfg),
            machine.device,
            cfg["seed"],
            _numbered(cfg["labels"], trained),
            cfg["clip"],
            Guidance(knobs["scale"], None if knobs["interval"] is None else tuple(knobs["interval"]), knobs["rescale"]),
            guide,
            CADS(**knobs["cads"]) if knobs["cads"]["noise"] else None,
            edit,
            load_gallery(cfg["edit"], build.item_shape(trained.config)) if edit else None,
        )
        _check_walk(artist)
    except ValueError as error:
        raise error if isinstance(error, UserError) else UserError(str(error)) from error
    return artist


def _numbered(labels: Any, trained: build.Trained) -> Any:
    """The labels as typed, names of classes replaced by their numbers; UserError for a class that is not there."""
    count, names = build.null_label(trained.denoiser.network), trained.class_names
    if labels in (None, "each", "none") or count is None:
        return labels
    numbers = {name: number for number, name in enumerate(names)}
    chosen: list[Any] = [numbers.get(label, label) for label in (labels if isinstance(labels, list) else [labels])]
    wrong = [label for label in chosen if isinstance(label, str) or not 0 <= label < count]
    if wrong:
        known = ", ".join(f"{number} {name}" for number, name in enumerate(names[:_NAMES_SHOWN]))
        more = ", ..." if len(names) > _NAMES_SHOWN else ""
        told = f": {known}{more}" if any(name != str(number) for number, name in enumerate(names)) else ""
        raise UserError(f"labels must lie in 0..{count - 1} (the checkpoint's classes{told}), got {wrong[0]}")
    return chosen if isinstance(labels, list) else chosen[0]


def wanted_labels(labels: Any, edit: Any) -> Any:
    """The labels as typed; where images are edited, the null label unless others are asked for."""
    return "none" if labels is None and edit is not None else labels


def _check_classes(cfg: dict[str, Any], trained: build.Trained, path: Path) -> None:
    knobs, conditional = cfg["guidance"], build.null_label(trained.denoiser.network) is not None
    by_label = knobs["scale"] != 1 and knobs["guide_ckpt"] is None
    if not conditional and (cfg["labels"] not in (None, "none") or by_label or knobs["cads"]["noise"]):
        raise UserError(f"labels, guidance.scale and cads need a class-conditional model; {path} is unconditional")
    if conditional and trained.config.get("training", {}).get("label_dropout") == 0:
        _check_null_label(cfg, by_label)
    _warn_of_no_effect(cfg, conditional)


def _warn_of_no_effect(cfg: dict[str, Any], conditional: bool) -> None:
    """A line for each knob of guidance that was set and that the others make void."""
    knobs = cfg["guidance"]
    cads = CADS(**knobs["cads"])
    if knobs["scale"] == 1 and (knobs["guide_ckpt"] or knobs["interval"] or knobs["rescale"]):
        log.warning("guidance.scale=1 is no guidance: guide_ckpt, interval and rescale have no effect")
    if conditional and wanted_labels(cfg["labels"], cfg["edit"]) == "none":
        by_label = ["guidance.scale"] if knobs["scale"] != 1 and knobs["guide_ckpt"] is None else []
        void = [*by_label, *(["guidance.cads"] if cads.noise else [])]
        if void:
            log.warning("labels=none: %s has no effect on the null label; choose labels=each", " and ".join(void))
    if not cads.noise and cads != CADS(noise=cads.noise):
        log.warning("guidance.cads.noise=0 is no noise: cads.start, cads.end and cads.mixing have no effect")


def _check_null_label(cfg: dict[str, Any], by_label: bool) -> None:
    """UserError where a model that never learned its null label would be asked for it."""
    why = "the model was trained with training.label_dropout=0 and never learned its null label"
    train = "train with training.label_dropout=0.1"
    if wanted_labels(cfg["labels"], cfg["edit"]) == "none":
        key = "labels=none" if cfg["labels"] == "none" else "an edit without labels"
        raise UserError(f"{key}: {why}; choose labels=each or labels=[3], or {train}")
    if by_label:
        scale = f"guidance.scale={cfg['guidance']['scale']:g}"
        raise UserError(f"{scale}: {why}; {train}, or guide by guidance.guide_ckpt=CHECKPOINT")


def _load_guide(cfg: dict[str, Any], trained: build.Trained) -> Denoiser:
    """The model to guide by, of the same noise levels, shape and classes."""
    path = checkpoint.find(cfg["guidance"]["guide_ckpt"], key="guidance.guide_ckpt")
    guide = build.load_trained(path, cfg["weights"], None, cfg["trust"])
    same = guide.config["schedule"] == trained.config["schedule"]
    same &= build.item_shape(guide.config) == build.item_shape(trained.config)
    own, others = (build.null_label(model.denoiser.network) for model in (trained, guide))
    if not same or (others is not None and own not in (None, others)):
        raise UserError(
            f"guidance.guide_ckpt={path} has another schedule, image shape or number of classes than ckpt; "
            "take an earlier checkpoint of the same run"
        )
    if cfg["guidance"]["scale"] != 1 and not cfg["guidance"]["cads"]["noise"] and _same_weights(trained, guide):
        log.warning("guidance.guide_ckpt=%s holds the same weights as ckpt: guidance.scale has no effect", path)
    return guide.denoiser


def _same_weights(one: build.Trained, other: build.Trained) -> bool:
    a, b = (trained.denoiser.network.state_dict() for trained in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _check_walk(artist: Artist) -> None:
    """ValueError for what the sampler or the edit cannot do on this schedule: both compute what they need when
    called."""
    schedule, variance = artist.trained.denoiser.schedule, artist.trained.variance
    one = torch.zeros(1, 1, 1, 1)
    artist.sampler(artist.trained.denoiser, one, schedule, variance, lambda i: one)
    last = float(schedule.times(artist.sampler.num_steps, artist.sampler.spacing)[-1])
    if last > 0:
        log.warning("sampler.spacing ends at t = %g: the images keep the noise of that time", last)
    if artist.edit is None:
        return
    if getattr(artist.edit, "inverts", False):
        refuse_noise(artist.sampler, type(artist.edit).__name__.lower())
        if last > 0:
            raise ValueError("sampler.spacing: a way to noise and back must end at 0")
    else:
        mask = torch.ones_like(one, dtype=torch.bool)
        artist.edit(artist.trained.denoiser, artist.sampler, schedule, variance, lambda i: one, Source(one, mask))
