"""Drawing images from a checkpoint: what ddpm-sample does once its command line is validated."""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_cli import __version__, build, checkpoint, pictures, plan
from ddpm_cli.config import Context
from ddpm_cli.data.store import to_file
from ddpm_cli.diffusion.denoiser import Cond, Denoise, clipped, guided
from ddpm_cli.diffusion.samplers import SamplerStep
from ddpm_cli.errors import UserError
from ddpm_cli.generation import choose_labels, walk
from ddpm_cli.making import name_of
from ddpm_cli.preview import grid_of
from ddpm_cli.runtime import PRECISIONS, Signals

log = logging.getLogger("ddpm_cli")
_GRID_MAX, _FILM_IMAGES, _FILM_FRAMES = 100, 16, 50


@dataclass(frozen=True)
class Artist:
    """A trained denoiser with all that an invocation asked for; draws the images of given numbers."""

    denoise: Denoise
    sampler: Any
    trained: build.Trained
    device: torch.device
    seed: int
    labels: Any

    @property
    def num_classes(self) -> int | None:
        """None for an unconditional model."""
        return build.null_label(self.trained.denoiser.network)

    def labels_of(self, indices: range) -> Tensor | None:
        if self.num_classes is None:
            return None
        return choose_labels(self.labels, indices, self.num_classes, self.seed)

    def walk(self, indices: range) -> Iterator[SamplerStep]:
        labels = self.labels_of(indices)
        cond: Cond = None if labels is None else {"labels": labels.to(self.device)}
        denoiser = self.trained.denoiser
        return walk(
            self.denoise,
            self.sampler,
            denoiser.schedule,
            self.trained.variance,
            item_shape=build.item_shape(self.trained.config),
            seed=self.seed,
            indices=indices,
            cond=cond,
            device=self.device,
        )


def run_sampling(cfg: dict[str, Any], context: Context) -> None:
    """Draws num_images images into the output folder; the last line on stdout is that folder."""
    path = checkpoint.find(cfg["ckpt"])
    artist = build_artist(cfg, path)
    out = context.run_dir
    (out / "images").mkdir(parents=True, exist_ok=True)
    log.info("drawing %d images from %s (step %d)", cfg["num_images"], path, artist.trained.step)
    indices = range(cfg["num_images"])
    labels = artist.labels_of(indices)
    with Signals() as signals:
        images = _draw(artist, cfg, out, signals)
    _write(out, images, labels, artist)
    _record(out, cfg, path, artist)
    print(out)


def build_artist(cfg: dict[str, Any], path: Path) -> Artist:
    """Loads the checkpoint and joins it with what the invocation asks for."""
    trained = build.load_trained(path, cfg["weights"], cfg["variance"], cfg["trust"])
    denoiser, classes = trained.denoiser, build.null_label(trained.denoiser.network)
    if classes is None and (cfg["labels"] not in (None, "none") or cfg["guidance"]["scale"] != 1):
        raise UserError(f"labels and guidance.scale need a class-conditional model; {path} is unconditional")
    flops = plan.forward_flops(denoiser.network, build.item_shape(trained.config))
    machine = plan.choose_machine({**cfg, "compile": False}, flops)
    denoiser.to(machine.device)
    denoiser.amp_dtype = PRECISIONS[machine.precision]
    denoise: Denoise = guided(denoiser, cfg["guidance"]["scale"], classes or 0)
    sampler = build.build_sampler(cfg)
    try:
        denoiser.schedule.times(sampler.num_steps, sampler.spacing)
    except ValueError as error:
        raise UserError(str(error)) from error
    artist = Artist(
        clipped(denoise) if cfg["clip"] else denoise, sampler, trained, machine.device, cfg["seed"], cfg["labels"]
    )
    artist.labels_of(range(cfg["num_images"]))  # refuses a label out of range before anything is drawn
    return artist


@torch.inference_mode()
def _draw(artist: Artist, cfg: dict[str, Any], out: Path, signals: Signals) -> Tensor:
    """uint8 (N, C, H, W); each image is written as soon as its batch is done."""
    images, total = [], cfg["num_images"]
    steps = len(artist.trained.denoiser.schedule.times(artist.sampler.num_steps, artist.sampler.spacing)) - 1
    bar = tqdm(total=total, unit="image", disable=None, dynamic_ncols=True)
    for start in range(0, total, cfg["batch_size"]):
        indices = range(start, min(start + cfg["batch_size"], total))
        frames: list[Tensor] = []
        for step in artist.walk(indices):
            if signals:
                log.info("stopped by a signal: %d of %d images are in %s", start, total, out / "images")
                raise SystemExit(signals.exit_code)
            if (
                cfg["animate"]
                and start == 0
                and step.index % max(1, steps // _FILM_FRAMES) == (steps - 1) % max(1, steps // _FILM_FRAMES)
            ):
                frames.append(to_file(step.x[:_FILM_IMAGES]))
        images.append(to_file(step.x).cpu())
        for k, image in zip(indices, images[-1], strict=True):
            pictures.save_png(pictures.to_image(image), out / "images" / f"{k:06d}.png")
        if frames:
            pictures.save_film([pictures.grid(frame) for frame in frames], out / "walk.gif")
        bar.update(len(indices))
    bar.close()
    return torch.cat(images)


def _write(out: Path, images: Tensor, labels: Tensor | None, artist: Artist) -> None:
    columns = artist.num_classes if artist.labels == "each" else None
    pictures.save_png(grid_of(images[:_GRID_MAX], columns), out / "grid.png")
    arrays = {"images": np.moveaxis(images.numpy(), 1, -1)}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    temporary = out / ".samples.tmp.npz"
    np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
    temporary.replace(out / "samples.npz")


def _record(out: Path, cfg: dict[str, Any], path: Path, artist: Artist) -> None:
    """sampling.json: all that is needed to draw the same images again."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    record = {
        "checkpoint": str(path.resolve()),
        "sha256": digest,
        "step": artist.trained.step,
        "seed": cfg["seed"],
        "num_images": cfg["num_images"],
        "sampler": {"name": name_of(cfg["sampler"]), **_knobs(cfg["sampler"])},
        "variance": type(artist.trained.variance).__name__,
        "clip": cfg["clip"],
        "labels": cfg["labels"],
        "guidance": cfg["guidance"],
        "weights": cfg["weights"],
        "device": str(artist.device),
        "precision": next(k for k, v in PRECISIONS.items() if v == artist.trained.denoiser.amp_dtype),
        "versions": {"ddpm_cli": __version__, "torch": str(torch.__version__), "numpy": np.__version__},
    }
    (out / "sampling.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _knobs(node: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in node.items() if k != "_target_"}
