"""The commands as functions of Python: settings in, a folder, a denoiser or images out; errors are exceptions.

A setting means what it means on the command line and is refused alike, as UserError (a ValueError: yours to mend) with
the line that the command would print; WorldError (a RuntimeError) is a full disk, no memory, a loss that is not finite.
Both are in `ddpm_cli.errors`. No function here ends the process.
"""

import contextlib
import copy
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.build.load import Trained, load_trained
from ddpm_cli.cli.flags import read
from ddpm_cli.cli.main import context_of, report_on_run
from ddpm_cli.cli.preflight import accepted, settings_of
from ddpm_cli.config.overrides import key_of, quoted
from ddpm_cli.config.values import DEVICE, accepts
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.samplers import run
from ddpm_cli.errors import UserError
from ddpm_cli.sampling.batch_size import chosen_batch_size
from ddpm_cli.sampling.pipeline import build_pipeline
from ddpm_cli.system import tree
from ddpm_cli.system.device import choose_device
from ddpm_cli.system.progress import is_open, progress_bar
from ddpm_cli.training_run.run import run_training

# {"dataset": "mnist", "training.num_steps": 500, "training": {"batch_size": 64}}, or as typed: ["dataset=mnist", ...]
Settings = Mapping[str, Any] | Sequence[str]

_OF_MODEL = {"weights", "lora", "trust", "device"}  # what load_denoiser was told
_OF_COMMAND = {"out_dir", "animate", "devices", "threads"}  # files and processes, of which there are none here
_WORD = re.compile(r"(?!(?:null|true|false|nan|inf)$)[a-z_][\w./-]*", re.IGNORECASE)  # what Hydra reads as that text
# What the checkpoint of a denoiser says of itself, without the denoiser: a value that held its key would keep it.
_loaded: WeakKeyDictionary[Denoiser, dict[str, Any]] = WeakKeyDictionary()


def train(settings: Settings = ()) -> Path:
    """Trains as `ddpm-train` does with these settings, a dict or a list of "key=value", and returns the run's folder.

    `resume=RUN` goes on with a run. A signal (Ctrl-C, or the notebook's stop button) saves a checkpoint, and then is
    KeyboardInterrupt. What the command says on stderr is said there too, unless your program has set up logging.
    """
    began, words = time.monotonic(), _overrides(settings)
    line = read("train", words)
    with accepted(line) as found:
        if found.sweep:
            raise UserError("several runs need the command: ddpm-train -m; call train once for each")
        if found.config["dry_run"]:
            raise UserError("dry_run=true prints a plan and makes no run: ddpm-train dry_run=true")
        with _logged():
            try:
                run_training(found.config, replace(context_of(line, found, began), says_folder=False))
            except SystemExit as end:  # of a command that was told to end, and has saved
                raise KeyboardInterrupt(f"stopped; go on with resume={found.folder}") from end
            report_on_run(found)
    return found.folder


def load_denoiser(ckpt: str | PathLike[str], weights: str = "ema", device: str = "cpu") -> Denoiser:
    """The denoiser of a checkpoint in eval mode, to be called as denoiser(x_t, t, {"labels": labels}).x_0, with x_t
    (B, C, H, W) in [-1, 1] where t is 0, t (B,) in 1..T and labels (B,) int64, on that device.

    ckpt: whatever `ddpm-sample ckpt=` takes. weights: ema, raw, or ema@LENGTH. device: cpu, cuda, cuda:1, mps, auto.
    """
    if not accepts(DEVICE, device):
        raise UserError(f"device={device}: must be {DEVICE.text}")
    place = choose_device(device)
    trained = load_trained(str(ckpt), weights)
    told = {each.name: getattr(trained, each.name) for each in fields(trained) if each.name != "denoiser"}
    _loaded[trained.denoiser.to(place)] = told
    return trained.denoiser


@torch.inference_mode()
def generate(
    model: Denoiser | str | PathLike[str],
    num_images: int = 64,
    *,
    labels: int | str | Sequence[int | str] | Tensor | np.ndarray | None = None,
    sampler: str = "ddim",
    seed: int = 0,
    settings: Settings = (),
) -> Tensor:
    """The images that `ddpm-sample` draws with the same settings, to the bit, (num_images, C, H, W) uint8, 0 to 255, on
    the CPU; of a model of sounds (num_images, samples) int16, of arrays what its `samples.npz` holds.

    model: what load_denoiser gave, which is left as it is, or what `ddpm-sample ckpt=` takes. labels: None draws a
    class for each image; 3, "cat" or a list are taken in turn, as are all classes by "each"; "none" is the null label.
    settings: further ones of ddpm-sample, such as {"sampler.num_steps": 20, "guidance.scale": 2}.
    """
    known = _known(model) if isinstance(model, Denoiser) else None
    where = {} if known is None else {"device": str(next(known.denoiser.parameters()).device)}
    own = {"ckpt": str(known.path if known else model), "num_images": num_images, "sampler": sampler, "seed": seed}
    more, labels = _overrides(settings), labels.tolist() if isinstance(labels, Tensor | np.ndarray) else labels
    _check_settings(more, {*own, "labels"} | _OF_COMMAND | (_OF_MODEL if known else set()))
    cfg = settings_of("sample", [*_overrides({**own, "labels": labels, **where}), *more])
    if cfg["edit"] is not None:
        raise UserError("edit is of files; draw edits with ddpm-sample")
    pipeline = build_pipeline(cfg, known)
    total, at_once = cfg["num_images"], chosen_batch_size(cfg["batch_size"], pipeline, cfg["num_images"], 1)
    pipeline.settle_on(at_once)
    drawn = []
    with progress_bar(total=total, unit=pipeline.medium.one, dynamic_ncols=True) as bar:
        for start in range(0, total, at_once):
            x_0 = run(pipeline.walk(range(start, min(start + at_once, total))))
            drawn.append(pipeline.medium.to_file(x_0).cpu())
            bar.update(len(drawn[-1]))
    return torch.cat(drawn)


def _check_settings(words: Sequence[str], said: set[str]) -> None:
    """UserError for a setting that something else has decided."""
    for key in (key_of(text) for text in words):
        if key in said:
            raise UserError(
                f"settings: {key} has no place there: it is an argument, the denoiser's own, or of ddpm-sample alone"
            )


def _known(denoiser: Denoiser) -> Trained:
    """A copy, since to draw with a model is to move it to another device and number format."""
    if denoiser not in _loaded:
        raise UserError("generate draws from what ddpm_cli.load_denoiser gave, or from a checkpoint's path")
    return Trained(denoiser=copy.deepcopy(denoiser), **_loaded[denoiser])


def _overrides(settings: Settings) -> list[str]:
    """As they are typed, key=value."""
    if isinstance(settings, str):
        raise UserError(f"settings are a dict or a list: [{settings!r}]")
    if isinstance(settings, Mapping):
        return [f"{key}={_typed(value)}" for key, value in tree.leaves(dict(settings), into=(dict,))]
    if settings is None or not isinstance(settings, Sequence):
        raise UserError(f"settings are a dict or a list of key=value, not {type(settings).__name__}")
    if flags := [text for text in settings if str(text).startswith("-")]:
        raise UserError(f"{flags[0]} is a flag of the command line; settings are written key=value")
    return [str(text) for text in settings]


def _typed(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_typed, value))}]"
    if isinstance(value, str | PathLike):
        return str(value) if _WORD.fullmatch(str(value)) else quoted(str(value))
    return str(value)


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """What a run says goes into its log, and to stderr where there is no other place for it."""
    log, root = logging.getLogger("ddpm_cli"), logging.getLogger()
    level, handler = log.level, logging.StreamHandler()
    shown = not root.handlers and is_open(sys.stderr)
    if level == logging.NOTSET:
        log.setLevel(logging.INFO)
    if shown:
        root.addHandler(handler)
    try:
        yield
    finally:
        log.setLevel(level)
        root.removeHandler(handler)
