"""A trained denoiser with all that an invocation of ddpm-sample asked for: labels, guidance, clipping, an edit.

How one image is drawn, from its number k to its file:

  run.run_sampling              build_pipeline, then batches of the numbers that have no file yet, shared among ranks
  build_pipeline                load_trained (open_checkpoint, build_denoiser, load_weights), the refusals of checks,
                                build_sampler, load_inputs of an edit, placed (device and precision)
  SamplingPipeline.walk         for one batch, with all that follows:
    labels_of                   choose_labels: image k's class, a function of (seed, k)
    cond_of                     with what image k is drawn from, of a model with a condition: number k of these, in turn
    ImageNoise                  its normal numbers, a function of (seed, k, step); schedule.prior makes x_T of the first
    _denoise                    the denoiser, wrapped from the inside out: annealed (CADS: noise on the class), guided
                                (by the null label or a weaker model), clipped or thresholded
    generate.walk, or the edit  the sampler: a generator that calls denoise(x_t, t) at each time of its grid, moves x_t
                                towards the estimate of x_0, and yields a SamplerStep
  run._draw                     takes the steps (Animation.add keeps some), of the last one x: Medium.to_file, save

Nothing in it looks at another image of the batch, so that image k is the same however many are drawn together.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.build.autoencoder import is_of_latents
from ddpm_cli.build.instantiate import make, make_asking
from ddpm_cli.build.labels import class_numbers
from ddpm_cli.build.load import Trained, load_trained
from ddpm_cli.build.machine import compile_for, place, placed
from ddpm_cli.build.model import build_medium, build_sampler, input_shape, null_label
from ddpm_cli.diffusion.denoiser import Cond, Denoise, Denoised, clipped, thresholded
from ddpm_cli.diffusion.editing import Edit, Source
from ddpm_cli.diffusion.guidance import APG, CADS, Guidance, annealed, by_weaker_model, classifier_free, guided
from ddpm_cli.diffusion.samplers import Sampler, SamplerStep, run
from ddpm_cli.media.base import Medium
from ddpm_cli.sampling import checks
from ddpm_cli.sampling.conditions import Given, cond_of, load_given
from ddpm_cli.sampling.edit_inputs import EditInputs, load_inputs
from ddpm_cli.sampling.generate import ImageNoise, choose_labels, walk

log = logging.getLogger("ddpm_cli")
_GROUPS = ("model", "schedule", "prediction", "variance")  # of the checkpoint's configuration, what is drawn with


@dataclass(frozen=True)
class SamplingPipeline:
    """Draws the images of given numbers; image k is a function of the seed and k."""

    trained: Trained
    sampler: Sampler
    device: torch.device
    seed: int
    labels: Any
    clip: Any  # True, False, "dynamic": what `auto` came to
    guidance: Guidance
    guide: Trained | None = None  # the weaker model to guide by
    cads: CADS | None = None
    edit: Edit | None = None
    inputs: EditInputs | None = None  # of the edit
    precision: str = "fp32"
    compile: bool = False
    model_sha256: str = ""  # of what of the checkpoint the images depend on
    given: Given | None = None  # what they are drawn from, of a model with a condition

    @cached_property
    def medium(self) -> Medium:
        return build_medium(self.trained.config)

    @property
    def num_classes(self) -> int | None:
        """None for an unconditional model."""
        return null_label(self.trained.denoiser.network)

    def settle_on(self, batch_size: int) -> None:
        """From here on images come in batches of this size, but for the last one."""
        if self.compile:
            log.info("compiling the network, about a minute; compile=false skips it")
            for trained in (self.trained, self.guide):
                if trained is not None:
                    compile_for(trained.denoiser, batch_size)

    def labels_of(self, indices: Sequence[int]) -> Tensor | None:
        """(B,) int64, None for an unconditional model; one label for all that is between two images."""
        if self.num_classes is None:
            return None
        places = self._places(indices)
        if self.given is not None and self.labels is None and self.edit is None:
            known = self.given.labels_of(places)
            if known is not None:
                return known
        wanted = checks.wanted_labels(self.labels, self.edit or self.given)
        return choose_labels(wanted, places, self.num_classes, self.seed)

    def classes_of(self, indices: Sequence[int]) -> Tensor | None:
        """(B,) int64: what the images are meant to be of, also where the model is told of it by its condition alone."""
        if self.num_classes is None and self.given is not None:
            return self.given.labels_of(self._places(indices))
        return self.labels_of(indices)

    def _places(self, indices: Sequence[int]) -> list[int]:
        """By which labels and conditions are counted: all that is between two images has the same."""
        frames = self.inputs.frames if self.inputs is not None else 1
        return [k // frames for k in indices]

    def walk(self, indices: Sequence[int]) -> Iterator[SamplerStep]:
        """The steps of the images numbered `indices`, together."""
        cond = cond_of(self.labels_of(indices), self.given, self._places(indices), self.device)
        schedule, variance = self.trained.denoiser.schedule, self.trained.variance
        noise = ImageNoise(self.seed, indices, self.medium.item_shape, self.device)
        denoise = self._denoise(noise)
        if self.edit is None or self.inputs is None:
            return walk(denoise, self.sampler, schedule, variance, noise, cond)
        source = self.inputs.rows(indices, self.device)
        return self.edit(lambda x_t, t: denoise(x_t, t, cond), self.sampler, schedule, variance, noise, source)

    @cached_property
    def evaluations(self) -> int:
        """How often the denoiser is called for an image, found by a walk of one number with nothing to evaluate."""
        calls = 0

        def denoise(x_t: Tensor, t: Tensor, cond: Cond = None) -> Denoised:
            nonlocal calls
            calls += 1
            return Denoised(x_t, x_t)

        one = torch.zeros(1, 1, 1, 1)
        walked = (self.trained.denoiser.schedule, self.trained.variance, lambda i: one)
        if self.edit is None:
            run(self.sampler(denoise, one, *walked))
        else:
            run(self.edit(denoise, self.sampler, *walked, Source(one, one > 0, one, torch.zeros(1))))
        return calls

    def _denoise(self, noise: ImageNoise) -> Denoise:
        denoiser, null = self.trained.denoiser, self.num_classes or 0
        denoise: Denoise = denoiser
        if self.cads is not None:
            embed: Any = denoiser.network.embed_labels
            denoise = annealed(denoise, self.cads, embed, noise.of_classes, denoiser.schedule.num_timesteps, null)
        # around CADS: of the two estimates only the one with the label is drawn from a noisy class
        weaker = self.guide.denoiser if self.guide is not None else None
        pair = by_weaker_model(denoise, weaker) if weaker is not None else classifier_free(denoise, null)
        denoise = guided(denoise, pair, self.guidance, denoiser.schedule, denoiser.prediction)
        # outermost, since guidance is what drives an estimate out of range; but clipped, noise would not lead back
        if not self.clip or (self.edit is not None and self.edit.inverts):
            return denoise
        return thresholded(denoise) if self.clip == "dynamic" else clipped(denoise)


def build_pipeline(cfg: dict[str, Any], trained: Trained | None = None) -> SamplingPipeline:
    """Loads the checkpoint, unless it is there already, and joins it with what the invocation asks for; UserError where
    they do not go together. A `trained` one is moved to the device chosen, and into its number format."""
    knobs, weights, trust = cfg["guidance"], cfg["weights"], cfg["trust"]
    trained, guide = trained or load_trained(cfg["ckpt"], weights, trust, lora=cfg["lora"]), None
    checks.check_draws(trained)
    if knobs["guide_ckpt"] is not None:
        guide = load_trained(knobs["guide_ckpt"], weights, trust, key="guidance.guide_ckpt")
    with checks.refusals_told():
        cads = CADS(**knobs["cads"])
        interval = knobs["interval"] and tuple(knobs["interval"])
        guidance = Guidance(knobs["scale"], interval, knobs["rescale"], APG(**knobs["apg"]))
        checks.check_classes(cfg, cads, trained)
        if guide is not None:
            checks.check_guide(guide, trained, knobs)
        if cfg["variance"] is not None:
            variance = make_asking("variance", cfg["variance"], trust, estimate=trained.measured)
            checks.check_variance(variance, trained, weights)
            trained = replace(trained, variance=variance)
        sampler = build_sampler(cfg, trained.denoiser, trained.variance)
        edit = cfg["edit"] and make("edit", cfg["edit"], trust)
        checks.check_edit(edit, sampler, trained, guidance)
        checks.tell_of_few_steps(sampler, trained)
        labels = class_numbers(cfg["labels"], trained)
        medium = build_medium(trained.config)
        checks.check_clip(cfg["clip"], medium)
        inputs = load_inputs(cfg["edit"], medium) if edit else None
        given = load_given(cfg, trained.config)
    sha256 = model_sha256(trained)  # of the weights as they are in the file: a GPU may be given others
    calls = cfg["num_images"] * (cfg["sampler"].get("num_steps") or trained.denoiser.schedule.num_timesteps)
    machine = placed(trained.denoiser, cfg, input_shape(trained.config), calls)
    if guide is not None:  # in the same precision, whatever its own size would have chosen
        place(guide.denoiser, machine)
    return SamplingPipeline(
        trained,
        sampler,
        machine.device,
        cfg["seed"],
        labels,
        trained.config.get("clip", medium.limit == 1) if cfg["clip"] == "auto" else cfg["clip"],
        guidance,
        guide,
        cads if cads.noise else None,
        edit,
        inputs,
        machine.precision,
        machine.compile,
        sha256,
        given,
    )


def model_sha256(trained: Trained) -> str:
    """Of what the images depend on: the weights in use, what they mean, and the measured variance where it is used."""
    meaning = {group: trained.config.get(group) for group in _GROUPS}
    if (condition := trained.config.get("condition")) is not None:
        meaning["condition"] = condition
    if is_of_latents(trained.config):
        meaning |= {key: trained.config["representation"][key] for key in ("sha256", "scale_factor")}
    digest = hashlib.sha256(json.dumps(meaning, sort_keys=True, default=str).encode())
    measured = {f"analytic.{i}": table for i, table in enumerate(trained.variance.tables)}
    tensors = {**trained.denoiser.network.state_dict(), **measured}
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
