"""The run's side of the training loop: its checkpoints and previews, and what a failed step was made of."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_cli import build, checkpoint
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.errors import WorldError
from ddpm_cli.pictures import save_png
from ddpm_cli.preview import Preview, grid_of, strip_of
from ddpm_cli.run_dir import checkpoints, latest_checkpoint
from ddpm_cli.run_files import RunDir
from ddpm_cli.runtime import is_out_of_memory
from ddpm_cli.training.journal import Journal
from ddpm_cli.training.loop import Interrupted
from ddpm_cli.training.state import TrainState
from ddpm_cli.training.step import Trainer

log = logging.getLogger("ddpm_cli")


@dataclass
class Sampler:
    """Draws the preview at a sampling step and puts it into the run's folder and TensorBoard."""

    run: RunDir
    journal: Journal
    denoiser: Denoiser  # of the averaged weights
    preview: Preview
    interrupted: Callable[[], bool]

    def __call__(self, state: TrainState) -> None:
        # A preview may take longer than a process that was told to end is given.
        hook = self.denoiser.network.register_forward_pre_hook(self._unless_interrupted)
        try:
            images, strip = self.preview(self.denoiser)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise self._out_of_memory(state.step, error) from error
        finally:
            hook.remove()
        grid = grid_of(images, self.preview.num_classes)
        path = self.run.sample_path(state.step)
        try:
            save_png(grid, path)
        except OSError as error:
            raise WorldError(f"could not write {path}: {error.strerror or error}") from error
        self.journal.picture("samples/grid", grid, state.step)
        self.journal.picture("samples/from_noise_to_image", strip_of(strip), state.step)

    def _out_of_memory(self, step: int, error: Exception) -> WorldError:
        at_once = min(self.preview.num_images, self.preview.batch_size)
        fewer = f"training.num_samples={max(1, at_once // 4)} or " if at_once > 1 else ""
        reason = (str(error).splitlines() or ["no memory left"])[0].split(". ")[0][:160]
        return WorldError(
            f"out of memory in the preview of step {step} with {at_once} images at once; go on with: ddpm-train "
            f"resume={self.run.path} {fewer}training.sample_every=0 (the training stays the same) [{reason}]"
        )

    def _unless_interrupted(self, *_: Any) -> None:
        if self.interrupted():
            raise Interrupted


@dataclass
class Checkpoints:
    """Saves and reloads the run's state, and dumps steps that were not finite."""

    run: RunDir
    header: dict[str, Any]
    keep: int
    trainer: Trainer

    def save(self, state: TrainState, progress: dict[str, Any], best: bool) -> None:
        content = {**self.header, **state.state_dict(), "progress": progress}
        self.run.save_checkpoint(state.step, content, self.keep, best=best)

    def newest(self) -> Path | None:
        return latest_checkpoint(self.run.path)

    def reload(self, state: TrainState) -> dict[str, Any]:
        path, content, bad = checkpoint.first_good(checkpoints(self.run.path), self.run.path)
        load_state(state, content, path)
        self.run.set_aside(state.step, bad)
        return content["progress"]

    def dump(self, step: int, t: Tensor | None, total: Tensor | None) -> Path:
        """The batch, noise, t and losses of a step (counted from 0) into nonfinite/, for study."""
        settings, draws = self.trainer.settings, self.trainer.draws
        images, labels = self.trainer.batch(step, 0, settings.batch_size)
        noise = draws.noise(step, tuple(images.shape[1:]))
        content = {"step": step, "x_0": images, "labels": labels, "noise": noise, "t": t, "loss": total}
        newest = self.newest()
        content |= {"lr": self.trainer.lr(step), "checkpoint": str(newest) if newest else None}
        path = self.run.path / "nonfinite" / f"step_{step + 1:08d}.pt"
        try:
            path.parent.mkdir(exist_ok=True)
            checkpoint.save(path, {k: v.cpu() if isinstance(v, Tensor) else v for k, v in content.items()})
        except (OSError, WorldError) as error:  # must not hide what it is about
            log.warning("%s", error)
        return path


def load_state(state: TrainState, content: dict[str, Any], path: Path) -> None:
    """The state of a checkpoint, every entry of it; UserError, with the network as it was, if one does not fit."""
    build.load_weights(state.network, content["network"], path)
    state.load_state_dict(content)


def preview_of(cfg: dict[str, Any], denoiser: Denoiser, item_shape: tuple[int, ...], device: torch.device) -> Preview:
    classes = build.null_label(denoiser.network)
    sampler = build.build_sampler(cfg, denoiser)
    return Preview(sampler, item_shape, cfg["training"]["num_samples"], classes, cfg["seed"], device)
