"""Three ranks make the steps that one makes: in processes of their own, two take part in every scenario here.

With two, sums in another order would still be the same bits.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from training.test_step import CPU, flat, make

from ddpm_cli.data.loading.batches import Batches
from ddpm_cli.data.shapes import shapes
from ddpm_cli.diffusion import losses, timesteps, weighting
from ddpm_cli.errors import WorldError
from ddpm_cli.models.edm2 import EDM2
from ddpm_cli.system.ranks import Children
from ddpm_cli.training.data_parallel import SINGLE_RANK, Ranks, micro_batches

STEPS, WORLD = 10, 3
# What is changed of test_step's trainer, which has a batch of 12, clipping and label dropout.
SCENARIOS: dict[str, dict] = {
    "whole": {},
    "micro-batches": {"micro_batch_size": 3},
    "dropout": {"dropout": 0.3, "micro_batch_size": 4},  # the same micro-batches on one rank and on three
    "loss_second_moment": {"timesteps": True},
    "uncertainty": {"weighting": True, "max_grad_norm": 0.1},
    "not finite": {"fault": True},
    "half a gradient": {"half": True},
    "coupled": {"coupling": "assignment", "micro_batch_size": 3},
    "edm2": {"network": EDM2, "micro_batch_size": 4, "half": True},
}


class Fault:
    """Batches whose last row is not finite at step 4."""

    def __init__(self, batch):
        self.batch = batch

    def __call__(self, step, start, stop):
        images, labels = self.batch(step, start, stop)
        if step == 4 and stop == 12:
            images = images.clone()
            images[-1] = torch.nan
        return images, labels


def built(name, ranks=SINGLE_RANK):
    changes = dict(SCENARIOS[name])
    special = {key: changes.pop(key, None) for key in ("timesteps", "weighting", "fault", "half")}
    store = shapes(num_images=40, seed=0, split="train", channels=1, image_size=8, num_classes=4)
    trainer, state = make(store, **changes)
    batches = Batches(store, trainer.settings.batch_size, 0, True, CPU).batch
    trainer = replace(trainer, batch=Fault(batches) if special["fault"] else batches)
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
    return trainer.on(ranks), state


def steps(name, ranks=SINGLE_RANK):
    """Metrics of STEPS steps, and the state after them. The first rank alone measures half gradients."""
    trainer, state = built(name, ranks)
    made, norms = [], []
    for _ in range(STEPS):
        if SCENARIOS[name].get("half") and ranks.rank == 0:
            norms.append(float(trainer.half_gradient_norm(state)[0]))
        made.append(trainer(state))
    return made, state, norms


def digest(state):
    return hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in flat(state))).hexdigest()


def gone():
    return WorldError("gone")


def another_rank(place, store):
    """What the other processes do."""
    torch.set_num_threads(1)
    ranks = Ranks(place.rank, place.world, gone)
    ranks.connect(store, CPU, Path())
    for name in SCENARIOS:
        store.set(f"digest/{name}/{place.rank}", digest(steps(name, ranks)[1]))
    agreed = [ranks.first(None), ranks.any(False), ranks.any(place.rank == 2), ranks.smallest(5 - place.rank)]
    store.set(f"agreed/{place.rank}", str(agreed))


@pytest.fixture(scope="module")
def results():
    """name -> (metrics, state, norms, what the other ranks' states hash to); and what is agreed on."""
    before = torch.get_num_threads()
    from training import test_data_parallel  # by a name under which another process finds it

    children = Children(test_data_parallel.another_rank, WORLD)
    try:
        ranks = Ranks(0, WORLD, gone)
        ranks.connect(children.store, CPU, Path())
        torch.set_num_threads(1)
        found = {}
        for name in SCENARIOS:
            made = steps(name, ranks)
            found[name] = *made, [children.store.get(f"digest/{name}/{rank}").decode() for rank in (1, 2)]
        agreed = [ranks.first({"a": [1, 0.1]}), ranks.any(False), ranks.any(False), ranks.smallest(7)]
        found["agreed"] = [str(agreed)] + [children.store.get(f"agreed/{rank}").decode() for rank in (1, 2)]
        for _ in range(2):  # the others have ended
            with pytest.raises(WorldError, match="gone"):
                ranks.any(False)
        assert not children.died()
    finally:
        children.end(0.0)
        torch.set_num_threads(before)
        if dist.is_initialized():
            dist.destroy_process_group()
    return found


@pytest.mark.parametrize("name", ["whole", "micro-batches", "dropout", "loss_second_moment", "uncertainty", "edm2"])
def test_three_ranks_make_the_steps_of_one(results, name):
    made, state, _, _ = results[name]
    mine, alone, _ = steps(name)
    for one, three in zip(mine, made, strict=True):
        assert torch.equal(one.t, three.t)
        torch.testing.assert_close(one.total, three.total, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.grad_norm, three.grad_norm, rtol=1e-4, atol=1e-5)
    for one, three in zip(alone.network.parameters(), state.network.parameters(), strict=True):
        torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-5)
    if name == "loss_second_moment":
        assert torch.equal(alone.learned["timesteps"].counts, state.learned["timesteps"].counts)
        assert alone.learned["timesteps"].counts.sum() == 1001 + STEPS * 12
        torch.testing.assert_close(alone.learned["timesteps"].losses, state.learned["timesteps"].losses)
    if name == "uncertainty":
        assert state.learned["weighting"].weight.abs().sum() > 0


@pytest.mark.parametrize("name", SCENARIOS)
def test_all_ranks_have_the_same_state_bit_for_bit(results, name):
    _, state, _, others = results[name]
    assert [digest(state)] * 2 == others


def test_a_batch_that_is_not_finite_is_left_out_by_all(results):
    made, state, _, _ = results["not finite"]
    assert [i for i, m in enumerate(made) if not m.total.isfinite().all()] == [4]
    assert all(p.isfinite().all() for p in state.network.parameters())


def test_what_the_first_measures_alone_changes_nothing(results):
    _, state, norms, _ = results["half a gradient"]
    assert digest(state) == digest(results["whole"][1])
    assert norms == pytest.approx(steps("half a gradient")[2], rel=1e-4)  # of the whole batch's half, as alone


def test_what_differs_is_agreed_on(results):
    assert results["agreed"] == [str([{"a": [1, 0.1]}, False, True, 3])] * 3


@pytest.mark.parametrize("batch,micro,world", [(12, 12, 1), (6, 2, 2), (9, 2, 3), (8, 8, 4), (3, 1, 3)])
def test_micro_batches_of_all_ranks_are_the_batch_in_order(batch, micro, world):
    parts = [part for rank in range(world) for part in micro_batches(batch, micro, rank, world)]
    assert [number for number, _ in parts] == list(range(len(parts)))
    assert [row for _, rows in parts for row in range(batch)[rows]] == list(range(batch))
    assert all(rows.stop - rows.start <= micro for _, rows in parts)


@pytest.mark.parametrize(
    "error,told",
    [
        (torch.OutOfMemoryError("2 GiB"), "2 GiB"),
        (RuntimeError("shapes differ"), "shapes differ"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), "gone"),
        (dist.DistBackendError("NCCL communicator was aborted"), "gone"),
    ],
)
def test_what_fails_in_a_sum_is_told_as_what_it_is(error, told):
    ranks = Ranks(0, 2, gone)
    with pytest.raises((RuntimeError, WorldError), match=told), ranks.together():
        raise error
    if told == "gone":  # no other sum may follow
        with pytest.raises(WorldError, match="gone"), ranks.together():
            pass
