"""Two ranks make the step that one makes: in a process of its own, the second takes part in every scenario here."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from training.test_step import CPU, flat, make

from ddpm_cli.data.batches import Batches
from ddpm_cli.data.shapes import shapes
from ddpm_cli.diffusion import losses, timesteps, weighting
from ddpm_cli.errors import WorldError
from ddpm_cli.training.ranks import GivenUp, Group, micro_batches

STEPS = 10
UNEVEN = {"batch_size": 5, "micro_batch_size": 2}
# What is changed of test_step's trainer, which has clipping and label dropout, and how its batches fail.
SCENARIOS: dict[str, dict] = {
    "whole": {},
    "uneven": UNEVEN,
    "dropout": {"dropout": 0.3, "micro_batch_size": 3},  # the same micro-batches on one rank and on two
    "loss_second_moment": {**UNEVEN, "timesteps": True},
    "uncertainty": {"weighting": True, "max_grad_norm": 0.1},
    "not finite": {"fault": "nan"},
    "out of memory": {"fault": "memory"},
    "broken": {"fault": "error"},
}


class Fault:
    """Batches that fail at step 4: with NaN in the last row, or for want of memory on rank 1."""

    def __init__(self, batch, kind, rank):
        self.batch, self.kind, self.rank = batch, kind, rank

    def __call__(self, step, start, stop):
        images, labels = self.batch(step, start, stop)
        if step == 4 and self.kind == "nan" and stop == 12:
            images = images.clone()
            images[-1] = torch.nan
        if step == 4 and self.rank == 1 and self.kind in ("memory", "error"):
            raise {"memory": torch.OutOfMemoryError, "error": KeyError}[self.kind]("of a rank")
        return images, labels


def built(name, group=None):
    changes = dict(SCENARIOS[name])
    special = {key: changes.pop(key, None) for key in ("timesteps", "weighting", "fault")}
    store = shapes(num_images=40, seed=0, split="train", channels=1, image_size=8, num_classes=4)
    trainer, state = make(store, **changes)
    batches = Batches(store, trainer.settings.batch_size, 0, True, CPU).batch
    trainer = replace(trainer, batch=Fault(batches, special["fault"], group.rank if group else 0))
    if special["timesteps"]:
        learned = timesteps.LossSecondMoment(1000, history=1)
        learned.counts += 1  # known from the first step on, so that what is observed is drawn from
        learned.losses += torch.linspace(1, 2, 1001)[:, None]
        state.learned["timesteps"] = learned
        trainer = replace(trainer, timesteps=learned)
    if special["weighting"]:
        state.learned["weighting"] = weighting.Uncertainty()
        state.optimizer.add_param_group({"params": list(state.learned["weighting"].parameters())})
        trainer = replace(trainer, loss=losses.Denoising(state.learned["weighting"]))
    return replace(trainer, ranks=group) if group else trainer, state


def digest(state):
    return hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in flat(state))).hexdigest()


def connected(rank, port):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.TCPStore("127.0.0.1", port, 2, rank == 0, timedelta(seconds=60), wait_for_workers=False)
    return store, lambda: Group(rank, 2, store, lambda: WorldError("gone"))


def second_rank(port):
    """The other process."""
    torch.set_num_threads(1)
    store, group_of = connected(1, port)
    group = group_of()
    store.wait(["go"])
    group.connect(CPU)
    for name in SCENARIOS:
        trainer, state = built(name, group)
        with torch.no_grad():
            next(state.network.parameters()).add_(1)  # not rank 0's: it shares its own
        while group.receive(state):
            try:
                trainer(state)
            except GivenUp:
                continue
        store.set(f"digest/{name}", digest(state))
    group.smallest(3)
    os._exit(0)


def steps(trainer, state):
    """Metrics of STEPS steps, an error where one was given up; that step is left out."""
    made = []
    while len(made) < STEPS:
        try:
            made.append(trainer(state))
        except Exception as error:
            made.append(error)
            state.step += 1
    return made


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small gain nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def results():
    """name -> (metrics, state, what the other rank's state hashes to), and the least number of both ranks."""
    store, group_of = connected(0, 0)
    code = f"import sys; sys.path[:] = {sys.path!r}; from training.test_ranks import second_rank"
    other = subprocess.Popen([sys.executable, "-c", f"{code}; second_rank({store.port})"])
    try:
        store.set("go", "1")
        group = group_of()
        group.connect(CPU)
        found = {}
        for name in SCENARIOS:
            trainer, state = built(name, group)
            group.share(state)
            made = steps(trainer, state)
            group.stop()
            found[name] = made, state, store.get(f"digest/{name}").decode()
        found["smallest"] = group.smallest(7)
        assert other.wait(30) == 0
        with pytest.raises(WorldError, match="gone"):
            group.begin(0)
        with pytest.raises(WorldError, match="gone"):
            group.begin(1)
    finally:
        other.kill()
        other.wait()
        if dist.is_initialized():
            dist.destroy_process_group()
    return found


@pytest.mark.parametrize("name", ["whole", "uneven", "dropout", "loss_second_moment", "uncertainty"])
def test_two_ranks_make_the_steps_of_one(results, name):
    made, state, _ = results[name]
    trainer, alone = built(name)
    for mine, theirs in zip(steps(trainer, alone), made, strict=True):
        assert torch.equal(mine.t, theirs.t)
        torch.testing.assert_close(mine.total, theirs.total, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine.grad_norm, theirs.grad_norm, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(alone.network.parameters(), state.network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    if name == "loss_second_moment":
        assert torch.equal(alone.learned["timesteps"].counts, state.learned["timesteps"].counts)
        assert alone.learned["timesteps"].counts.sum() == 1001 + STEPS * 5
        torch.testing.assert_close(alone.learned["timesteps"].losses, state.learned["timesteps"].losses)
    if name == "uncertainty":
        assert state.learned["weighting"].weight.abs().sum() > 0


@pytest.mark.parametrize("name", SCENARIOS)
def test_both_ranks_have_the_same_state_bit_for_bit(results, name):
    _, state, other = results[name]
    assert digest(state) == other


def test_a_batch_that_is_not_finite_is_left_out_by_all(results):
    made, state, _ = results["not finite"]
    assert [i for i, m in enumerate(made) if not m.total.isfinite().all()] == [4]
    assert all(p.isfinite().all() for p in state.network.parameters())


@pytest.mark.parametrize("name,kind", [("out of memory", torch.OutOfMemoryError), ("broken", RuntimeError)])
def test_what_fails_on_one_rank_is_given_up_by_all_and_told(results, name, kind):
    made, _, _ = results[name]
    failed = [(i, m) for i, m in enumerate(made) if isinstance(m, Exception)]
    assert [i for i, _ in failed] == [4] and type(failed[0][1]) is kind
    assert "rank 1" in str(failed[0][1]) and "of a rank" in str(failed[0][1])


def test_the_least_number_is_that_of_all_ranks(results):
    assert results["smallest"] == 3


@pytest.mark.parametrize("batch,micro,world", [(12, 12, 1), (5, 2, 2), (7, 3, 3), (8, 8, 4), (3, 1, 3)])
def test_micro_batches_of_all_ranks_are_the_batch_in_order(batch, micro, world):
    parts = [part for rank in range(world) for part in micro_batches(batch, micro, rank, world)]
    assert [number for number, _ in parts] == list(range(len(parts)))
    assert [row for _, rows in parts for row in range(batch)[rows]] == list(range(batch))
    sizes = [sum(rows.stop - rows.start for _, rows in micro_batches(batch, micro, r, world)) for r in range(world)]
    assert max(sizes) - min(sizes) <= 1 and all(rows.stop - rows.start <= micro for _, rows in parts)


@pytest.mark.parametrize("error,told", [(torch.OutOfMemoryError("2 GiB"), "2 GiB"), (RuntimeError("closed"), "gone")])
def test_memory_that_runs_out_in_a_sum_is_not_told_as_a_lost_rank(monkeypatch, error, told):
    def fail(*args, **kwargs):
        raise error

    group = Group(0, 2, None, lambda: WorldError("gone"))
    monkeypatch.setattr(torch.distributed, "all_reduce", fail)
    with pytest.raises((RuntimeError, WorldError), match=told):
        group.smallest(3)
    assert group.broken  # no other collective may follow
