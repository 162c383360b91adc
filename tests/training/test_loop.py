"""The loop's own decisions: what is best, what is left out, what fits in memory, what is not finite."""

import math
from dataclasses import replace

import pytest
import torch
from training.test_step import flat, make, store

from ddpm_cli.errors import WorldError
from ddpm_cli.runtime import is_out_of_memory
from ddpm_cli.training.board import Board
from ddpm_cli.training.loop import Cadence, Keeper, train
from ddpm_cli.training.memory import first_that_fits, largest_micro_batch, out_of_memory
from ddpm_cli.training.watch import first_non_finite

__all__ = ["store"]


class Quiet:
    """A journal that remembers its figures."""

    def __init__(self):
        self.lines = []

    def metrics(self, step, values):
        self.lines.append((step, values["loss"]))

    def tick(self):
        pass

    def rewind(self, step):
        self.lines = [line for line in self.lines if line[0] <= step]


class Memory:
    """Checkpoints in memory."""

    def __init__(self, stop_after=None):
        self.saved, self.best, self.dumped, self.stop_after = [], [], [], stop_after

    def save(self, state, progress, best):
        self.saved.append((state.step, flat(state), _copy(state.state_dict()), progress))
        self.best += [state.step] if best else []

    def reload(self, state):
        state.load_state_dict(_copy(self.saved[-1][2]))
        return self.saved[-1][3]

    def dump(self, step, t, total):
        self.dumped.append(step)
        return "there"

    def keeper(self):
        return Keeper(
            lambda state: None, self.save, self.reload, self.dump, lambda: self.saved[-1][0] if self.saved else None,
            lambda: self.stop_after is not None and len(self.saved) >= self.stop_after,
        )  # fmt: skip


def _copy(node):
    if isinstance(node, torch.Tensor):
        return node.clone()
    if isinstance(node, dict):
        return {k: _copy(v) for k, v in node.items()}
    return [_copy(v) for v in node] if isinstance(node, list) else node


CADENCE = Cadence(num_steps=9, stop_at=None, log_every=3, sample_every=0, checkpoint_every=2)


def poison(trainer, steps):
    real = trainer.batch

    def batch(step, start, stop):
        images, labels = real(step, start, stop)
        return (images * math.nan if step in steps else images), labels

    object.__setattr__(trainer, "batch", batch)


def test_best_is_judged_at_the_cadence_alone_by_the_last_logged_loss(store):
    trainer, state = make(store)
    journal, memory = Quiet(), Memory()
    train(trainer, state, CADENCE, journal, memory.keeper(), keep_best=True)
    assert [step for step, *_ in memory.saved] == [2, 4, 6, 8, 9]
    losses = dict(journal.lines)
    assert memory.best[0] == 4 and (6 in memory.best) == (losses[6] < losses[3])


def test_a_rollback_leaves_out_the_batch_and_says_how_often(store):
    trainer, state = make(store)
    poison(trainer, {4})
    journal, memory = Quiet(), Memory()
    train(trainer, state, CADENCE, journal, memory.keeper(), on_nonfinite="rollback")
    assert memory.dumped == [4] and memory.saved[-1][3]["skipped"] == [4]
    assert [step for step, _ in journal.lines] == [3, 6, 9]


def test_a_failed_preview_costs_no_step_and_is_made_again_by_a_resume(store):
    cadence = Cadence(num_steps=9, stop_at=None, log_every=3, sample_every=3, checkpoint_every=4)
    (trainer, whole), quiet, memory = make(store), Quiet(), Memory()
    train(trainer, whole, cadence, quiet, memory.keeper())

    def fail(state):
        if state.step == 6:
            raise WorldError("the disk is full")

    (trainer, state), journal, memory = make(store), Quiet(), Memory()
    with pytest.raises(WorldError, match="the disk is full"):
        train(trainer, state, cadence, journal, replace(memory.keeper(), sample=fail))
    assert [step for step, *_ in memory.saved] == [4, 6]
    trainer, state = make(store)
    progress, drawn = memory.reload(state), []
    keeper = replace(memory.keeper(), sample=lambda s: drawn.append(s.step))
    train(trainer, state, cadence, journal, keeper, progress=progress)
    assert drawn == [6, 9] and journal.lines == quiet.lines
    assert all(torch.equal(a, b) for a, b in zip(flat(whole), flat(state), strict=True))


def test_the_error_of_a_preview_comes_out_where_nothing_can_be_saved(store):
    def full(*_):
        raise WorldError("could not write the checkpoint")

    def fail(state):
        raise ZeroDivisionError

    (trainer, state), memory = make(store), Memory()
    with pytest.raises(ZeroDivisionError):
        train(trainer, state, Cadence(9, None, 3, 3, 4), Quiet(), replace(memory.keeper(), sample=fail, save=full))


def test_too_many_rollbacks_are_no_accident(store):
    trainer, state = make(store)
    poison(trainer, set(range(3, 100)))
    with pytest.raises(WorldError, match="after 10 batches left out"):
        train(trainer, state, Cadence(50, None, 3, 0, 2), Quiet(), Memory().keeper(), on_nonfinite="rollback")


def test_a_state_that_is_not_finite_is_not_saved(store):
    trainer, state = make(store)
    memory = Memory()
    state.emas["ema"].network.state_dict()
    next(state.emas["ema"].network.parameters()).data[0] = math.inf
    with pytest.raises(WorldError, match=r"at step 2.*\nThere is no checkpoint yet\.\n"):
        train(trainer, state, CADENCE, Quiet(), memory.keeper())
    assert memory.saved == [] and first_non_finite(state.state_dict()).startswith("emas.ema.")


def test_the_size_that_fits_is_the_first_that_does_not_run_out_of_memory():
    def attempt(size):
        if size > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return size != 5

    assert first_that_fits([16, 8, 5, 4, 2, 1], attempt) == 4
    with pytest.raises(ZeroDivisionError):
        first_that_fits([2, 1], lambda size: 1 // 0)


def test_the_probe_leaves_the_state_as_it_was(store):
    trainer, state = make(store)
    trainer(state)
    before = flat(state)
    assert largest_micro_batch(trainer, state) == 12
    assert all(torch.equal(a, b) for a, b in zip(before, flat(state), strict=True))


def test_out_of_memory_names_the_batch_and_two_overrides():
    text = str(out_of_memory(6, 128, 64, None, torch.OutOfMemoryError("CUDA out of memory. Tried ...")))
    assert "step 7 with 64 images at once (training.batch_size=128)" in text
    assert "training.micro_batch_size=32 or training.micro_batch_size=16" in text and "\n" not in text
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_a_board_that_cannot_be_written_is_given_up_once(tmp_path, caplog):
    (tmp_path / "tensorboard").touch()
    board = Board(tmp_path / "tensorboard", 0)
    for step in range(3):
        board.scalar("a", 1.0, step)
    board.close()
    assert len([r for r in caplog.records if "going on without" in r.message]) == 1
