"""Drawing images from a checkpoint: what ddpm-sample does once its command line is validated."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ddpm_cli import checkpoint, pictures
from ddpm_cli.artist import Artist, build_artist
from ddpm_cli.config import Context
from ddpm_cli.data.store import to_file
from ddpm_cli.edit_images import with_frames
from ddpm_cli.film import Film
from ddpm_cli.preview import grid_of
from ddpm_cli.runtime import Signals
from ddpm_cli.sampling_record import check_folder, record_of

log = logging.getLogger("ddpm_cli")
_GRID_MAX = 100


def run_sampling(cfg: dict[str, Any], context: Context) -> None:
    """Draws num_images images into the output folder, or those that an interrupted run left out; the last line on
    stdout is that folder."""
    out = context.run_dir
    path = checkpoint.find(cfg["ckpt"])
    artist = build_artist(cfg, path)
    artist, total = _how_many(cfg, context, artist)
    spacing, num_steps = (cfg["sampler"].get(key) for key in ("spacing", "num_steps"))
    if isinstance(spacing, list) and "sampler.num_steps" in context.typed_keys and num_steps != len(spacing) - 1:
        log.warning("sampler.num_steps=%s has no effect: sampler.spacing lists %d steps", num_steps, len(spacing) - 1)
    labels = artist.labels_of(range(total))  # refuses a label out of range before anything is drawn
    record = record_of(cfg, path, artist, total)
    check_folder(out, record, artist)
    (out / "images").mkdir(parents=True, exist_ok=True)
    _replace_text(out / "sampling.json", json.dumps(record, indent=2) + "\n")
    missing = [k for k in range(total) if not _file(out, k).exists()]
    if cfg["animate"] and not (out / "walk.gif").exists():
        missing = sorted({*missing, *range(min(total, cfg["batch_size"]))})
    log.info("drawing %d images from %s (step %d)", len(missing), path, artist.trained.step)
    if len(missing) < total:
        log.info("the others are in %s already", out)
    with Signals() as signals:
        _draw(artist, cfg, out, missing, signals)
    _write(out, total, labels, artist)
    print(out)


def _how_many(cfg: dict[str, Any], context: Context, artist: Artist) -> tuple[Artist, int]:
    """num_images, which a typed one shares out as an interpolation's frames; of an edit, unless it was typed, one for
    each image, and all frames of an interpolation."""
    gallery, typed = artist.gallery, context.typed_keys
    if gallery is None:
        return artist, int(cfg["num_images"])
    if "num_images" not in typed:
        return artist, len(gallery) * gallery.frames
    gallery = with_frames(gallery, int(cfg["num_images"]), "edit.frames" in typed)
    return replace(artist, gallery=gallery), int(cfg["num_images"])


@torch.inference_mode()
def _draw(artist: Artist, cfg: dict[str, Any], out: Path, missing: Sequence[int], signals: Signals) -> None:
    """Each image is written as soon as its batch is done."""
    bar = tqdm(total=len(missing), unit="image", disable=None, dynamic_ncols=True)
    for start in range(0, len(missing), cfg["batch_size"]):
        indices = missing[start : start + cfg["batch_size"]]
        film = Film(artist.trained.denoiser.schedule) if cfg["animate"] and indices[0] == 0 else None
        for step in artist.walk(indices):
            if signals:
                log.info("stopped by a signal; the same command with out_dir=%s goes on", out)
                raise SystemExit(signals.exit_code)
            if film is not None:
                film.add(step)
        for k, image in zip(indices, to_file(step.x).cpu(), strict=True):
            pictures.save_png(pictures.to_image(image), _file(out, k))
        if film is not None:
            film.save(out)
        bar.update(len(indices))
    bar.close()


def _file(out: Path, k: int) -> Path:
    return out / "images" / f"{k:06d}.png"


def _read(file: Path) -> Tensor:
    """uint8 (C, H, W)."""
    with Image.open(file) as image:
        pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _write(out: Path, total: int, labels: Tensor | None, artist: Artist) -> None:
    images = torch.stack([_read(_file(out, k)) for k in range(total)])
    columns = artist.num_classes if artist.labels == "each" else None
    pictures.save_png(grid_of(images[:_GRID_MAX], columns), out / "grid.png")
    if artist.gallery is not None:
        items, width = artist.gallery.sheet(images)
        pictures.save_png(pictures.grid(items, columns=width), out / "side_by_side.png")
    arrays = {"images": np.moveaxis(images.numpy(), 1, -1)}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    temporary = out / ".samples.tmp.npz"
    np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
    temporary.replace(out / "samples.npz")


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
