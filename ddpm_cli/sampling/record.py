"""sampling.json: all that is needed to draw the same images again, and whether a folder's images are the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm_cli import __version__
from ddpm_cli.build.instantiate import name_of
from ddpm_cli.diffusion.guidance import APG
from ddpm_cli.diffusion.variance import Analytic
from ddpm_cli.errors import UserError
from ddpm_cli.sampling.pipeline import SamplingPipeline
from ddpm_cli.system.files import sha256_of

# Of the same image k, drawn at another time.
_MAY_DIFFER = {"num_images", "device", "versions", "checkpoint", "sha256", "lora", "evaluations"}


def record_of(cfg: dict[str, Any], pipeline: SamplingPipeline, total: int) -> dict[str, Any]:
    """The record of this invocation.

    sha256 names the file, and model_sha256 what of it the images depend on: a file to which ddpm-analytic has added its
    measurement is another one, and draws the same images.
    """
    trained, edit = pipeline.trained, None
    if cfg["edit"] is not None and pipeline.inputs is not None:
        edit = {"name": name_of(cfg["edit"]), **_knobs(cfg["edit"])}
        edit |= {"frames": pipeline.inputs.frames} if "frames" in edit else {}  # as num_images made them
    return {
        "checkpoint": str(trained.path.resolve()),
        "sha256": sha256_of(trained.path),
        "model_sha256": pipeline.model_sha256,
        "step": trained.step,
        "seed": cfg["seed"],
        "num_images": total,
        "sampler": {"name": name_of(cfg["sampler"]), **_with_spacing(_knobs(cfg["sampler"]), pipeline)},
        "evaluations": pipeline.evaluations,  # calls of the denoiser an image
        "variance": type(trained.variance).__name__,
        **({"last_noise": trained.variance.last_noise} if isinstance(trained.variance, Analytic) else {}),
        "clip": pipeline.clip,
        "labels": pipeline.labels,
        **_given(pipeline),
        "guidance": _guidance(cfg["guidance"]),
        "edit": edit,
        "weights": cfg["weights"],
        **({} if cfg["lora"] is None else {"lora": str(Path(cfg["lora"]).resolve())}),
        "device": str(pipeline.device),
        "precision": pipeline.precision,
        "versions": {"ddpm_cli": __version__, "torch": str(torch.__version__), "numpy": np.__version__},
    }


def check_folder(out: Path, record: dict[str, Any], pipeline: SamplingPipeline) -> None:
    """UserError where the folder holds images that this command line would not draw."""
    if not any((out / pipeline.medium.many).glob(f"*{pipeline.medium.suffix}")):
        return
    try:
        before = dict(json.loads((out / "sampling.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise UserError(
            f"out_dir={out} holds {pipeline.medium.many} of unknown origin; choose another out_dir"
        ) from None
    differ = [k for k in record if k not in _MAY_DIFFER and before.get(k) != record[k]]
    if differ:
        raise UserError(
            f"out_dir={out} holds {pipeline.medium.many} drawn otherwise ({differ[0]}: {before.get(differ[0])}, now "
            f"{record[differ[0]]}); choose another out_dir"
        )


def _with_spacing(knobs: dict[str, Any], pipeline: SamplingPipeline) -> dict[str, Any]:
    """A sampler's knobs with the spacing it takes by name: null would mean another one if a default changed."""
    own = "spacing" in knobs and knobs["spacing"] is None
    return {**knobs, "spacing": pipeline.sampler.spacing_on(pipeline.trained.denoiser.schedule)} if own else knobs


def _given(pipeline: SamplingPipeline) -> dict[str, Any]:
    """What the images are drawn from, of a model with a condition."""
    given = pipeline.given
    told = None if given is None else {"from": given.told, "number": len(given), "fingerprint": given.fingerprint}
    return {} if told is None else {"conditions": told}


def _guidance(knobs: dict[str, Any]) -> dict[str, Any]:
    """Says what is rescaled, which was the estimate of x_0 in earlier versions: their folders are not gone on with. Of
    apg nothing where it is off, as in records of versions that had none."""
    apg = {"apg": knobs["apg"]} if APG(**knobs["apg"]) != APG() else {}
    rescaled = {"rescaled": "output"} if knobs["rescale"] else {}
    return {key: value for key, value in knobs.items() if key != "apg"} | apg | rescaled


def _knobs(node: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in node.items() if k != "_target_"}
