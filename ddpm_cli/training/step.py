"""One optimiser step, the one that follows state.step = n. In order:

    t                 one time for each of the B images of the global batch, from Draws.uniform(n)
    x_0, labels       rows of the batch at position n of the stream of images, in [-1, 1]
    condition         made of x_0 as it is by now, mirrored and augmented, or of what lies beside it
    noise             (B, C, H, W), and of each image its own, whatever rank or micro-batch draws it; coupled with the
                      images of the global batch where that is asked for
    losses            the denoiser's error at x_t = alpha x_0 + sigma noise, weighted: a share of the mean for each
                      micro-batch, whose backward pass adds to the gradient; that of the last one also takes the
                      mean over the ranks, so that all hold the same gradient, bit for bit
    clipping          of the whole gradient, to max_grad_norm
    update            by the optimiser, left out if loss or gradient are not finite
    projection        of the weights to where the network wants them (EDM2: of unit magnitude)
    moving averages   step towards the new weights
    observe           a distribution of times that learns sees which t had which loss

All draws are functions of (seed, n, row), so the result depends on neither micro-batches nor ranks (to rounding), and a
resumed run makes the very step that it would have made. Up to the update nothing of the state has changed: until then a
step may be given up, for a signal or for want of memory, as if it had not been begun.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.data.conditions import InBatches
from ddpm_cli.data.loading.augment import NUM_DRAWS, GeometricAugment
from ddpm_cli.diffusion.denoiser import Cond, Denoiser
from ddpm_cli.diffusion.losses import Loss, LossTerms
from ddpm_cli.diffusion.timesteps import Timesteps
from ddpm_cli.training import learning_rate
from ddpm_cli.training.coupling import assigned
from ddpm_cli.training.data_parallel import SINGLE_RANK, SingleRank, micro_batches
from ddpm_cli.training.random_numbers import Draws, conditioning
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
    coupling: str = "none"
    reference_steps: int | None = None  # of the inverse square root


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
class TrainStep:
    """The objects of a run, joined; calling it makes the step that follows state.step."""

    denoiser: Denoiser
    loss: Loss
    timesteps: Timesteps
    batch: Batch
    draws: Draws
    settings: StepSettings
    augment: GeometricAugment | None = None
    conditions: InBatches | None = None
    ranks: SingleRank = SINGLE_RANK

    def __call__(self, state: TrainState) -> StepMetrics:
        t, losses = self.gradient(state)
        for group in state.optimizer.param_groups:
            group["lr"] = self.lr(state.step)
        state.scaler.unscale_(state.optimizer)
        limit = float("inf") if self.settings.max_grad_norm is None else self.settings.max_grad_norm
        grad_norm = torch.nn.utils.clip_grad_norm_(_parameters(state), limit)
        self._update(state, grad_norm.isfinite() & losses.total.isfinite().all())
        state.network.project_weights()  # type: ignore[operator]
        state.step += 1
        for ema in state.emas.values():
            ema.update(state.step)
        self.timesteps.observe(t, losses.total)
        return StepMetrics(t, losses.total, losses.mse, losses.vb, grad_norm)

    @property
    def one_pass(self) -> bool:
        """Whether the batch goes through the network at once, on this rank alone."""
        return self.ranks.world == 1 and self.settings.micro_batch_size >= self.settings.batch_size

    def on(self, ranks: SingleRank) -> "TrainStep":
        """The same step of several ranks, each of which calls it."""
        return replace(self, ranks=ranks, denoiser=ranks.parallel(self.denoiser))

    def unless(self, stop: Callable[[], bool], error: type[Exception]) -> "TrainStep":
        """The same, but a step in which `stop()` turns true is given up with `error` before its next micro-batch."""
        share = self.settings.batch_size // self.ranks.world

        def batch(step: int, start: int, end: int) -> tuple[Tensor, Tensor | None]:
            if start % share and stop():
                raise error
            return self.batch(step, start, end)

        return replace(self, batch=batch)

    def gradient(self, state: TrainState) -> tuple[Tensor, LossTerms]:
        """Leaves the gradient of the step that follows state.step in the parameters, scaled and unclipped; t and the
        losses of the global batch. Nothing else of the state changes, so that a step may be given up on the way."""
        t, importance = self.timesteps(self.draws.uniform(state.step), self.denoiser.schedule)
        state.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(state, t, importance, self.ranks)
        others = [p for module in state.learned.values() for p in module.parameters()]
        return t, self.ranks.joined(others, losses)

    def half_gradient_norm(self, state: TrainState) -> tuple[Tensor, int]:
        """The norm of the gradient of half the images of the step that follows, by this rank alone, and how many they
        are; the state is as before.

        Every other row: times spread evenly over the batch, as stratified ones are, stay so, where the first half has
        the small ones alone and is no smaller batch of the same kind.
        """
        t, importance = self.timesteps(self.draws.uniform(state.step), self.denoiser.schedule)
        state.optimizer.zero_grad(set_to_none=True)
        with self.ranks.apart():
            losses = self._backward(state, t, importance, SINGLE_RANK, every=2)
        gradients = [p.grad for p in _parameters(state) if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) / state.scaler.scale(torch.ones_like(losses.total[0]))
        state.optimizer.zero_grad(set_to_none=True)
        return norm, len(losses.total)

    def out_of_memory_words(self, step: int, newest: Path | None = None) -> tuple[str, str]:
        """What the step that follows `step` steps did as memory ran out, and two overrides that would fit. newest: the
        checkpoint to go on from. A larger change of the recipe is the user's to make."""
        batch = self.settings.batch_size
        micro = min(self.settings.micro_batch_size, batch // self.ranks.world)
        if micro > 1:
            smaller = [f"training.micro_batch_size={max(1, micro // n)}" for n in (2, 4)]
            remedy = " or ".join(dict.fromkeys(smaller)) + " (the result stays the same)"
            remedy += "" if micro > 2 else f", or training.batch_size={max(1, batch // 2)} (another recipe)"
        else:
            remedy = "smaller model.channels or dataset.image_size (sounds: num_samples), another recipe"
        doing = f"at step {step + 1} with {micro} images at once (training.batch_size={batch})"
        return doing, f"{f'go on from {newest} with' if newest else 'try'} {remedy}"

    def lr(self, step: int) -> float:
        """The learning rate of the step that follows `step` steps."""
        return self.settings.lr * learning_rate.factor(step, **self._rate)

    def lr_told(self, step: int) -> str | None:
        """What a run that goes on after `step` steps should say of its learning rate, if anything."""
        return learning_rate.told(self.settings.lr, step, **self._rate)

    @property
    def _rate(self) -> dict[str, Any]:
        names = ("num_steps", "warmup_steps", "decay", "reference_steps")
        return {name: getattr(self.settings, name) for name in names}

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

    def _backward(
        self, state: TrainState, t: Tensor, importance: Tensor, ranks: SingleRank, *, every: int = 1
    ) -> LossTerms:
        """The losses of the rank's rows, of which each `every`-th takes part."""
        step, settings, parts = state.step, self.settings, []
        dropped = self.draws.dropped(step, settings.label_dropout)
        loss = self.loss.at(step / settings.num_steps)
        noise: Tensor | None = None
        most = min(settings.micro_batch_size, settings.batch_size // self.ranks.world)  # that a rank has at once
        micro = list(micro_batches(settings.batch_size, most, ranks.rank, ranks.world))
        count = sum(-(-(rows.stop - rows.start) // every) for _, rows in micro)
        for part, block in micro:
            rows = slice(block.start, block.stop, every)
            x_0, cond = self._images(step, rows, dropped)
            noise = self._noise(step, tuple(x_0.shape[1:])) if noise is None else noise
            self.draws.seed_dropout(step, part)
            last = (part, block) == micro[-1]
            with contextlib.nullcontext() if last else ranks.apart():
                terms = loss(self.denoiser, x_0, cond, t[rows], noise[rows])
                # Each micro-batch adds its share of the mean over the rank's rows, so the gradient does not depend on
                # its size, and the mean over the ranks is that over the global batch.
                share = state.scaler.scale((importance[rows] * terms.total).sum() / count)
                with ranks.together():
                    share.backward()
            parts.append(terms)
        return LossTerms(*(_concatenated([getattr(part, field) for part in parts]) for field in ("total", "mse", "vb")))

    def _noise(self, step: int, item_shape: tuple[int, ...]) -> Tensor:
        """That of the global batch. To couple it takes the global batch's images too, on every rank: they are small
        beside what a network makes of a rank's own."""
        noise = self.draws.noise(step, item_shape)
        if self.settings.coupling == "none":
            return noise
        x_0, labels = self.batch(step, 0, self.settings.batch_size)
        return assigned(noise, x_0, None if self.settings.null_label is None else labels)

    def _images(self, step: int, rows: slice, dropped: Tensor) -> tuple[Tensor, Cond]:
        """x_0 of these rows of the batch, augmented, and what the network is told of them."""
        x_0, labels = self.batch(step, rows.start, rows.stop)
        x_0, labels = x_0[:: rows.step], None if labels is None else labels[:: rows.step]
        cond: Cond = conditioning(labels, dropped[rows], self.settings.null_label)
        beside = None if self.conditions is None else self.conditions.beside(step, rows.start, rows.stop)
        beside = None if beside is None else beside[:: rows.step]
        if self.augment is not None:
            u = self.draws.augment(step, NUM_DRAWS)[rows]
            if beside is not None and beside.ndim == x_0.ndim:  # another image is changed as its own is
                together, changes = self.augment(torch.cat([x_0, beside], 1), u)
                x_0, beside = together.tensor_split([x_0.shape[1]], 1)
            else:
                x_0, changes = self.augment(x_0, u)
            cond = {**(cond or {}), "augment": changes}
        if self.conditions is not None:
            cond = {**(cond or {}), **self.conditions.cond(x_0, beside, step, rows)}
        return x_0, cond


def _parameters(state: TrainState) -> list[Tensor]:
    return [p for group in state.optimizer.param_groups for p in group["params"]]


def _concatenated(values: list[Any]) -> Any:
    return None if values[0] is None else torch.cat([value.detach() for value in values])
