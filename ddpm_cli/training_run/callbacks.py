"""The run's side of the training loop: its checkpoints and previews, and what a failed step was made of."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_cli import __version__
from ddpm_cli.build.autoencoder import content_of
from ddpm_cli.build.machine import Machine
from ddpm_cli.build.model import build_medium, null_label
from ddpm_cli.build.trainer import Parts
from ddpm_cli.data.store import Store
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.errors import WorldError
from ddpm_cli.media.images import save_png
from ddpm_cli.run_dir import checkpoint
from ddpm_cli.run_dir.checkpoint import Progress
from ddpm_cli.run_dir.find import checkpoints
from ddpm_cli.run_dir.folder import RunDir
from ddpm_cli.sampling.conditions import given_by_data, held_out
from ddpm_cli.sampling.preview import Preview
from ddpm_cli.system.memory import out_of_memory_told
from ddpm_cli.training.journal import Journal
from ddpm_cli.training.loop import Interrupted
from ddpm_cli.training.state import TrainState
from ddpm_cli.training.step import TrainStep
from ddpm_cli.training_run.restore import data_fingerprint, load_state

log = logging.getLogger("ddpm_cli")


def build_preview(cfg: dict[str, Any], parts: Parts) -> Preview:
    """Of a model with a condition, from images that it is not trained on."""
    classes, images = null_label(parts.denoiser.network), cfg["training"]["num_samples"]
    given, device = given_by_data(cfg, held_out(cfg)), parts.machine.device
    return Preview(parts.sampler, build_medium(cfg), images, classes, cfg["seed"], device, given=given)


@dataclass
class PreviewCallback:
    """Draws the preview at a sampling step and puts it into the run's folder and its trackers."""

    run: RunDir
    journal: Journal
    denoiser: Denoiser  # of the averaged weights
    preview: Preview

    def __call__(self, state: TrainState) -> None:
        with out_of_memory_told(lambda: self._out_of_memory_words(state.step)):
            drawn = self.preview(self.denoiser)
        path = self.run.sample_path(state.step)
        try:
            save_png(drawn.grid, path)
            save_png(drawn.strip, path.with_name(f"walk_{state.step:08d}.png"))
            track = self.preview.medium.track(drawn.items)
            if track is not None:
                track.save(path.with_suffix(".wav"))
        except OSError as error:
            raise WorldError(f"could not write {path}: {error.strerror or error}") from error
        trackers = self.journal.trackers
        trackers.picture("samples/grid", drawn.grid, state.step)
        trackers.picture(f"samples/from_noise_to_{self.preview.medium.one}", drawn.strip, state.step)
        if track is not None:
            # A tag of its own: one that a picture has too would not be shown.
            trackers.sound("samples/sounds", track.samples, track.sample_rate, state.step, path.with_suffix(".wav"))

    def _out_of_memory_words(self, step: int) -> tuple[str, str]:
        at_once = min(self.preview.num_images, self.preview.batch_size)
        fewer = f"training.num_samples={max(1, at_once // 4)} or " if at_once > 1 else ""
        go_on = f"go on with: ddpm-train resume={self.run.path} {fewer}training.sample_every=0"
        doing = f"in the preview of step {step} with {at_once} images at once"
        return doing, f"{go_on} (the training stays the same)"


@contextmanager
def interruptible(denoiser: Denoiser, interrupted: Callable[[], bool]) -> Iterator[None]:
    """Inside, a call of the network raises Interrupted once the process was told to end: a preview or an evaluation may
    take longer than it is given."""

    def check(*_: Any) -> None:
        if interrupted():
            raise Interrupted

    hook = denoiser.network.register_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()


@dataclass
class CheckpointCallback:
    """Saves and reloads the run's state, and dumps steps that were not finite."""

    run: RunDir
    content: dict[str, Any]  # that is the same in all checkpoints, see run_content
    keep: int
    train_step: TrainStep

    def save(self, state: TrainState, progress: dict[str, Any], best: bool) -> None:
        content = {**self.content, **state.state_dict(), "progress": progress}
        self.run.save_checkpoint(state.step, content, self.keep, best=best)

    def newest(self) -> Path | None:
        return next(iter(checkpoints(self.run.path)), None)

    def reload(self, state: TrainState) -> Progress:
        path, content, bad = checkpoint.open_checkpoint(self.run.path, key="resume")
        load_state(state, content, path)
        self.run.set_aside(state.step, bad)
        self.train_step.ranks.first(path)
        return content["progress"]

    def dump(self, step: int, t: Tensor | None, total: Tensor | None) -> Path:
        """The batch, noise, t and losses of a step (counted from 0) into nonfinite/, for study."""
        settings, draws = self.train_step.settings, self.train_step.draws
        images, labels = self.train_step.batch(step, 0, settings.batch_size)
        noise = draws.noise(step, tuple(images.shape[1:]))
        content = {"step": step, "x_0": images, "labels": labels, "noise": noise, "t": t, "loss": total}
        newest = self.newest()
        content |= {"lr": self.train_step.lr(step), "checkpoint": str(newest) if newest else None}
        path = self.run.path / "nonfinite" / f"step_{step + 1:08d}.pt"
        try:
            path.parent.mkdir(exist_ok=True)
            checkpoint.save(path, {k: v.cpu() if isinstance(v, Tensor) else v for k, v in content.items()})
        except (OSError, WorldError) as error:  # must not hide what it is about
            log.warning("%s", error)
        return path


def run_content(cfg: dict[str, Any], machine: Machine, train_step: TrainStep, store: Store) -> dict[str, Any]:
    """What a checkpoint holds beside the state and its progress: what a resumed run must do as this one does."""
    auto = cfg["training"]["micro_batch_size"] == "auto"
    return {
        **content_of(cfg),
        "config": cfg,
        "precision": machine.precision,
        "compile": machine.compile,
        "threads": torch.get_num_threads(),
        "micro_batch_size": train_step.settings.micro_batch_size if auto else None,
        "version": __version__,
        "torch": str(torch.__version__),
        "data": {
            "name": store.name,
            "fingerprint": data_fingerprint(store, train_step),
            "class_names": list(store.class_names),
        },
    }
