"""One optimiser step: draws, losses over micro-batches, clipping, the update and the moving averages."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.data.augment import NUM_DRAWS, GeometricAugment
from ddpm_cli.diffusion.denoiser import Cond, Denoiser
from ddpm_cli.diffusion.losses import LossTerms
from ddpm_cli.training import learning_rate
from ddpm_cli.training.draws import Draws, conditioning
from ddpm_cli.training.ranks import SINGLE, Group, Single, micro_batches
from ddpm_cli.training.state import TrainState

Batch = Callable[[int, int, int], tuple[Tensor, Tensor | None]]  # (step, start, stop) -> images in [-1, 1], labels


@dataclass(frozen=True)
class StepSettings:
    """What a step needs to know besides the objects it works on."""

    num_steps: int
    batch_size: int
    micro_batch_size: int
    max_grad_norm: float | None
    label_dropout: float
    null_label: int | None
    lr: float
    warmup_steps: int
    decay: str


@dataclass(frozen=True)
class StepMetrics:
    """Tensors still on the device: per image t, total, mse and vb, each (B,), and the gradient's norm before clipping,
    0-dim."""

    t: Tensor
    total: Tensor
    mse: Tensor | None
    vb: Tensor | None
    grad_norm: Tensor


@dataclass(frozen=True)
class Trainer:
    """The objects of a run, joined; calling it makes the step that follows state.step."""

    denoiser: Denoiser
    loss: Callable[..., LossTerms]
    timesteps: Callable[..., tuple[Tensor, Tensor]]
    batch: Batch
    draws: Draws
    settings: StepSettings
    augment: GeometricAugment | None = None
    ranks: Single | Group = SINGLE

    def __call__(self, state: TrainState) -> StepMetrics:
        t, losses = self.gradient(state)
        for group in state.optimizer.param_groups:
            group["lr"] = self.lr(state.step)
        state.scaler.unscale_(state.optimizer)
        limit = float("inf") if self.settings.max_grad_norm is None else self.settings.max_grad_norm
        grad_norm = torch.nn.utils.clip_grad_norm_(_parameters(state), limit)
        self._update(state, grad_norm.isfinite() & losses.total.isfinite().all())
        state.step += 1
        for ema in state.emas.values():
            ema.update(state.network, state.step)
        if hasattr(self.timesteps, "observe"):
            self.timesteps.observe(t, losses.total)
        return StepMetrics(t, losses.total, losses.mse, losses.vb, grad_norm)

    def gradient(self, state: TrainState) -> tuple[Tensor, LossTerms]:
        """Leaves the gradient of the step that follows state.step in the parameters, scaled and unclipped; t and the
        losses of the global batch. Nothing else of the state changes, so that a step may be given up on the way."""
        self.ranks.begin(state.step)
        with self.ranks.attempt(_parameters(state)):
            t, importance = self.timesteps(self.draws.uniform(state.step), self.denoiser.schedule)
            state.optimizer.zero_grad(set_to_none=True)
            losses = self._backward(state, t, importance)
        return t, self.ranks.joined(_parameters(state), losses, self.settings.batch_size)

    def lr(self, step: int) -> float:
        """The learning rate of the step that follows `step` steps."""
        s = self.settings
        return s.lr * learning_rate.factor(step, num_steps=s.num_steps, warmup_steps=s.warmup_steps, decay=s.decay)

    @staticmethod
    def _update(state: TrainState, finite: Tensor) -> None:
        """The optimiser's step, left out where loss or gradient are not finite: on the device for the fused
        optimisers."""
        if state.scaler.is_enabled():
            state.scaler.step(state.optimizer)
            state.scaler.update()
        elif state.optimizer.defaults.get("fused"):
            state.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            state.optimizer.step()
        elif bool(finite):
            state.optimizer.step()

    def _backward(self, state: TrainState, t: Tensor, importance: Tensor) -> LossTerms:
        """The losses of this rank's rows."""
        step, settings, parts = state.step, self.settings, []
        dropped = self.draws.dropped(step, settings.label_dropout)
        noise: Tensor | None = None
        sizes = settings.batch_size, settings.micro_batch_size
        for part, rows in micro_batches(*sizes, self.ranks.rank, self.ranks.world):
            x_0, labels = self.batch(step, rows.start, rows.stop)
            noise = self.draws.noise(step, tuple(x_0.shape[1:])) if noise is None else noise
            cond: Cond = conditioning(labels, dropped[rows], settings.null_label)
            if self.augment is not None:
                x_0, changes = self.augment(x_0, self.draws.augment(step, NUM_DRAWS)[rows])
                cond = {**(cond or {}), "augment": changes}
            self.draws.seed_dropout(step, part)
            terms = self.loss(self.denoiser, x_0, cond, t[rows], noise[rows])
            # Each micro-batch adds its share of the mean over the global batch, so the gradient does not depend on its
            # size.
            state.scaler.scale((importance[rows] * terms.total).sum() / settings.batch_size).backward()
            parts.append(terms)
        return LossTerms(*(_concatenated([getattr(part, field) for part in parts]) for field in ("total", "mse", "vb")))


def _parameters(state: TrainState) -> list[Tensor]:
    return [p for group in state.optimizer.param_groups for p in group["params"]]


def _concatenated(values: list[Any]) -> Any:
    return None if values[0] is None else torch.cat([value.detach() for value in values])
