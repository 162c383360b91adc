"""The loop's own decisions: what is best, what is left out, what fits in memory, what is not finite."""

import math
from dataclasses import replace

import pytest
import torch
from training.test_step import flat, make, store

from ddpm_cli.errors import WorldError
from ddpm_cli.system.memory import is_out_of_memory, out_of_memory
from ddpm_cli.training.loop import Cadence, Callbacks, Interrupted, Measurement, Objective, train
from ddpm_cli.training.meter import Meter
from ddpm_cli.training.nonfinite import first_non_finite
from ddpm_cli.training.step import StepMetrics
from ddpm_cli.training.trackers.tensorboard import Board
from ddpm_cli.training_run.probe import first_that_fits, largest_micro_batch

__all__ = ["store"]


class Quiet:
    """A journal that remembers its figures."""

    def __init__(self):
        self.lines, self.figures = [], []

    def metrics(self, step, values):
        self.lines.append((step, values["loss"]))

    def measured(self, step, values):
        self.figures += [(step, values)] if values else []

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
        return Callbacks(
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
    train(trainer, state, CADENCE, journal, memory.keeper(), keep_best=Objective())
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


def test_out_of_memory_names_the_batch_and_two_overrides(store):
    step, _ = make(store, batch_size=128, micro_batch_size=64)
    text = str(out_of_memory(*step.out_of_memory_words(6), torch.OutOfMemoryError("CUDA out of memory. Tried ...")))
    assert "step 7 with 64 images at once (training.batch_size=128)" in text
    assert "training.micro_batch_size=32 or training.micro_batch_size=16" in text and "\n" not in text
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.parametrize(
    "micro,told",
    [
        (64, "training.micro_batch_size=32 or training.micro_batch_size=16 (the result stays the same)"),
        (2, "training.micro_batch_size=1 (the result stays the same), or training.batch_size=64 (another recipe)"),
        (
            1,
            "smaller model.channels or dataset.image_size (sounds: num_samples), another recipe",
        ),
    ],
)
def test_what_helps_against_too_little_memory_goes_on_from_the_last_checkpoint(store, micro, told):
    step, _ = make(store, batch_size=128, micro_batch_size=micro)
    assert step.out_of_memory_words(6)[1] == f"try {told}"
    assert step.out_of_memory_words(6, "a.pt")[1] == f"go on from a.pt with {told}"


def test_a_board_that_cannot_be_written_is_given_up_once(tmp_path, caplog):
    (tmp_path / "tensorboard").touch()
    board = Board(tmp_path / "tensorboard", 0)
    for step in range(3):
        board.scalars({"a": 1.0}, step)
    board.end("done", {})
    assert len([r for r in caplog.records if "going on without" in r.message]) == 1


def measured(values, every=2, what="evaluation"):
    """A measurement that gives these figures of fid, one a call."""
    left = list(values)
    return Measurement(every, what, lambda state: {"fid": left.pop(0)})


@pytest.mark.parametrize(("higher", "best"), [(False, [2, 6]), (True, [2, 4, 9])])
def test_best_is_the_evaluation_that_was_best_and_is_saved_when_it_is_made(store, higher, best):
    trainer, state = make(store)
    journal, memory = Quiet(), Memory()
    callbacks = replace(memory.keeper(), measurements=[measured([5.0, 6.0, 3.0, math.nan, 7.0])])
    goal = Objective("fid", higher, "evaluation")
    cadence = replace(CADENCE, checkpoint_every=100)
    last = train(trainer, state, cadence, journal, callbacks, keep_best=goal)
    assert memory.best == best and [step for step, _ in journal.figures] == [2, 4, 6, 8, 9]
    assert last["fid"] == 7.0 and "loss" in last


def test_measurements_change_nothing_of_the_run(store):
    (trainer, plain), memory = make(store, dropout=0.3), Memory()
    train(trainer, plain, CADENCE, Quiet(), memory.keeper())
    (trainer, state), memory = make(store, dropout=0.3), Memory()

    def disturb(state):
        torch.manual_seed(7)
        return {"fid": float(torch.rand(()))}

    callbacks = replace(memory.keeper(), measurements=[Measurement(1, "evaluation", disturb)])
    train(trainer, state, CADENCE, Quiet(), callbacks, noise_scale=True)
    assert all(torch.equal(a, b) for a, b in zip(flat(plain), flat(state), strict=True))


def test_an_interrupted_evaluation_is_made_again_by_a_resume(store):
    (trainer, state), journal, memory = make(store), Quiet(), Memory()

    def stop(state):
        raise Interrupted

    cut = [measured([1.0] * 9, 3, "held-out loss"), Measurement(6, "evaluation", stop)]
    train(trainer, state, CADENCE, journal, replace(memory.keeper(), measurements=cut))
    assert memory.saved[-1][0] == 6 and [step for step, _ in journal.figures] == [3]
    (trainer, state), again = make(store), [measured([1.0] * 9, 3, "held-out loss"), measured([2.0] * 9, 6)]
    progress = memory.reload(state)
    train(trainer, state, CADENCE, journal, replace(memory.keeper(), measurements=again), progress=progress)
    assert [step for step, _ in journal.figures] == [3, 6, 9] and [step for step, _ in journal.lines] == [3, 6, 9]


def test_the_best_of_one_figure_is_not_compared_with_that_of_another(store):
    (trainer, state), memory = make(store), Memory()
    train(trainer, state, replace(CADENCE, stop_at=4), Quiet(), memory.keeper(), keep_best=Objective())
    (trainer, state), later = make(store), Memory()
    progress = memory.reload(state)
    assert progress["best"] is not None
    callbacks = replace(later.keeper(), measurements=[measured([50.0] * 9)])
    goal = Objective("fid", False, "evaluation")
    train(trainer, state, CADENCE, Quiet(), callbacks, progress=progress, keep_best=goal)
    assert later.best == [6]


def test_the_noise_scale_is_the_trace_of_the_gradients_covariance_by_its_square():
    """Gradients of images N(signal, noise² I): a batch of n has squared norm |signal|² + noise² d / n."""
    meter, draw = Meter(torch.device("cpu")), torch.Generator().manual_seed(0)
    dims, batch, signal, noise = 1000, 64, 8.0, 2.0
    for _ in range(200):
        each = signal / dims**0.5 + noise * torch.randn(batch, dims, generator=draw)
        norms = each.mean(0).norm(), each[::2].mean(0).norm()
        metrics = StepMetrics(torch.ones(batch), torch.zeros(batch), None, None, norms[0])
        meter.add(metrics)
        meter.add_half(norms[1], batch // 2, metrics)
    assert meter.summary()["noise_scale"] == pytest.approx(noise**2 * dims / signal**2, rel=0.1)
    assert "noise_scale" in meter.means()  # goes on over log steps
