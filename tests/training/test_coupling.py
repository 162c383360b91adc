"""Which noise an image gets: the best assignment within a class, of the whole batch whatever the micro-batches."""

import itertools
from dataclasses import replace

import pytest
import torch
from commands import TINY, run, tensors
from training.test_step import make

from ddpm_cli.data.shapes import shapes
from ddpm_cli.training.coupling import assigned

STORE = shapes(num_images=40, seed=0, split="train", channels=1, image_size=8, num_classes=4)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def distance(a, b):
    return float((a - b).square().sum())


def test_the_assignment_is_the_nearest_of_all_orders():
    x_0, noise = normal(6, 1, 3, 3), normal(6, 1, 3, 3, seed=1)
    least = min(distance(x_0, noise[list(order)]) for order in itertools.permutations(range(6)))
    coupled = assigned(noise, x_0)
    assert distance(x_0, coupled) == pytest.approx(least)
    assert torch.equal(coupled.flatten(1).sort(0).values, noise.flatten(1).sort(0).values)  # the same rows


def test_noise_that_is_the_images_in_another_order_finds_them():
    x_0, order = normal(50, 2, 4), torch.randperm(50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(assigned(x_0[order], x_0), x_0)


def test_with_labels_noise_is_exchanged_within_a_class_alone():
    x_0, noise, labels = normal(60, 5), normal(60, 5, seed=1), torch.arange(60) % 3
    coupled = assigned(noise, x_0, labels)
    for label in range(3):
        rows = labels == label
        assert torch.equal(coupled[rows], assigned(noise[rows], x_0[rows]))
    assert distance(x_0, assigned(noise, x_0)) < distance(x_0, coupled) < distance(x_0, noise)


@pytest.mark.parametrize("micro", [5, 1])
def test_the_batch_is_coupled_as_a_whole_whatever_the_micro_batch(micro):
    (whole, state), (parts, other) = (make(STORE, coupling="assignment", micro_batch_size=m) for m in (12, micro))
    plain, third = make(STORE)
    for _ in range(3):
        a, b, c = whole(state), parts(other), plain(third)
        torch.testing.assert_close(a.total, b.total, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(a.total, c.total, rtol=1e-2)


def test_what_the_network_learns_from_is_the_coupled_pair():
    trainer, state = make(STORE, coupling="assignment")
    x_0, labels = trainer.batch(0, 0, 12)
    expected = assigned(trainer.draws.noise(0, (1, 8, 8)), x_0, labels)
    seen = []

    def loss(denoiser, x_0, cond, t, noise):
        seen.append(noise)
        return trainer.loss(denoiser, x_0, cond, t, noise)

    loss.at = lambda progress: loss
    replace(trainer, loss=loss)(state)
    assert torch.equal(torch.cat(seen), expected)


def test_a_coupled_run_goes_on_bit_for_bit(tmp_path):
    words = [*TINY, "training.coupling=assignment", "training.num_steps=8", "training.sample_every=0", "device=cpu"]
    for name, more in (("straight", []), ("stopped", ["training.stop_at=3"]), ("plain", ["training.coupling=none"])):
        run("train", *words, *more, f"run_dir={tmp_path}/{name}", cwd=tmp_path)
    run("train", f"resume={tmp_path}/stopped", "training.stop_at=null", cwd=tmp_path)
    a, b, c = (
        tensors(torch.load(tmp_path / name / "checkpoints/step_00000008.pt", weights_only=True))
        for name in ("straight", "stopped", "plain")
    )
    assert all(torch.equal(a[key], b[key]) for key in a) and not all(torch.equal(a[key], c[key]) for key in a)
