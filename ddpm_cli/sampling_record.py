"""sampling.json: all that is needed to draw the same images again, and whether a folder's images are the same."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm_cli import __version__
from ddpm_cli.artist import Artist
from ddpm_cli.build import Trained
from ddpm_cli.diffusion.variance import Analytic
from ddpm_cli.edit_images import Gallery
from ddpm_cli.errors import UserError
from ddpm_cli.making import name_of
from ddpm_cli.runtime import PRECISIONS

_MAY_DIFFER = {"num_images", "device", "versions", "checkpoint"}  # of the same image k, drawn at another time
_GROUPS = ("model", "schedule", "prediction", "variance")  # of the checkpoint's configuration, what is drawn with


def record_of(cfg: dict[str, Any], path: Path, artist: Artist, total: int) -> dict[str, Any]:
    """The record of this invocation."""
    return {
        "checkpoint": str(path.resolve()),
        "sha256": _sha256_of_file(path),
        "model_sha256": _sha256_of_model(artist.trained),
        "step": artist.trained.step,
        "seed": cfg["seed"],
        "num_images": total,
        "sampler": {"name": name_of(cfg["sampler"]), **_with_spacing(_knobs(cfg["sampler"]), artist)},
        "variance": type(artist.trained.variance).__name__,
        "clip": cfg["clip"],
        "labels": artist.labels,
        "guidance": cfg["guidance"],
        "edit": _edit(cfg["edit"], artist.gallery),
        "weights": cfg["weights"],
        "device": str(artist.device),
        "precision": next(k for k, v in PRECISIONS.items() if v == artist.trained.denoiser.amp_dtype),
        "versions": {"ddpm_cli": __version__, "torch": str(torch.__version__), "numpy": np.__version__},
    }


def check_folder(out: Path, record: dict[str, Any], artist: Artist) -> None:
    """UserError where the folder holds images that this command line would not draw."""
    if not any((out / "images").glob("*.png")):
        return
    try:
        before = dict(json.loads((out / "sampling.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise UserError(f"out_dir={out} holds images of unknown origin; choose another out_dir") from None
    if isinstance(before.get("sampler"), dict):  # null in records of earlier versions
        before["sampler"] = _with_spacing(before["sampler"], artist)
    # ddpm-analytic adds to the file and leaves what is drawn with as it is. Earlier versions knew only the file.
    same_model = "sha256" if "model_sha256" in before else "model_sha256"
    differ = [k for k in record if k not in _MAY_DIFFER and k != same_model and before.get(k) != record[k]]
    if differ:
        raise UserError(
            f"out_dir={out} holds images drawn otherwise ({differ[0]}: {before.get(differ[0])}, now "
            f"{record[differ[0]]}); choose another out_dir"
        )


def _with_spacing(knobs: dict[str, Any], artist: Artist) -> dict[str, Any]:
    """A sampler's knobs with the schedule's own spacing by name."""
    own = "spacing" in knobs and knobs["spacing"] is None
    return {**knobs, "spacing": artist.trained.denoiser.schedule.spacing} if own else knobs


def _edit(node: dict[str, Any] | None, gallery: Gallery | None) -> dict[str, Any] | None:
    if node is None or gallery is None:
        return None
    return {"name": name_of(node), **_knobs(node), **({"frames": gallery.frames} if "frames" in node else {})}


def _knobs(node: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in node.items() if k != "_target_"}


def _sha256_of_model(trained: Trained) -> str:
    """Of what the images depend on: the weights in use, what they mean, and the measured variance where it is used."""
    meaning = {group: trained.config.get(group) for group in _GROUPS}
    digest = hashlib.sha256(json.dumps(meaning, sort_keys=True, default=str).encode())
    tensors = trained.denoiser.network.state_dict()
    if isinstance(trained.variance, Analytic):
        tensors = {**tensors, **{f"analytic.{i}": table for i, table in enumerate(trained.variance.tables)}}
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _sha256_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
