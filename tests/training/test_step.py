"""One optimiser step: what it depends on and what it does not."""

import pytest
import torch

from ddpm_cli.data.loading.batches import Batches
from ddpm_cli.data.shapes import shapes
from ddpm_cli.diffusion import losses, prediction, schedule, timesteps, variance, weighting
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.models.unet import UNet
from ddpm_cli.training.ema import EMA, Constant
from ddpm_cli.training.nonfinite import NonFinite, NonFiniteMonitor
from ddpm_cli.training.random_numbers import Draws
from ddpm_cli.training.state import TrainState
from ddpm_cli.training.step import StepSettings, TrainStep

CPU = torch.device("cpu")
SETTINGS = {
    "num_steps": 100, "batch_size": 12, "micro_batch_size": 12, "max_grad_norm": 1.0, "label_dropout": 0.2,
    "null_label": 4, "lr": 1e-3, "warmup_steps": 0, "decay": "none",
}  # fmt: skip


@pytest.fixture(scope="module")
def store():
    return shapes(num_images=40, seed=0, split="train", channels=1, image_size=8, num_classes=4)


def make(store, *, dropout=0.0, optimizer=torch.optim.AdamW, network=UNet, **changes):
    torch.manual_seed(0)
    network = network(
        in_channels=1, out_channels=1, num_classes=4, class_conditional=True, channels=8, channel_mult=[1, 2],
        blocks_per_level=1, attention_levels=[1], dropout=dropout,
    )  # fmt: skip
    denoiser = Denoiser(network, schedule.cosine(), prediction.V(), variance.FixedSmall())
    settings = StepSettings(**{**SETTINGS, **changes})
    batches = Batches(store, settings.batch_size, 0, True, CPU)
    loss, draws = losses.Denoising(weighting.V()), Draws(0, settings.batch_size, CPU)
    trainer = TrainStep(denoiser, loss, timesteps.Stratified(), batches.batch, draws, settings)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    emas = {"ema": EMA(network, Constant(0.9))}
    return trainer, TrainState(network, emas, optimizer(network.parameters(), lr=1e-3), scaler)


def flat(state):
    """All tensors of a state, to compare bit by bit."""
    found = []

    def visit(node):
        if isinstance(node, torch.Tensor):
            found.append(node.detach().clone())
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ():
            visit(child)

    visit(state.state_dict())
    return found


@pytest.mark.parametrize("micro", [12, 5, 1])
def test_losses_do_not_depend_on_the_micro_batch(store, micro):
    whole, state_whole = make(store)
    parts, state_parts = make(store, micro_batch_size=micro)
    for _ in range(20):
        a, b = whole(state_whole), parts(state_parts)
        torch.testing.assert_close(a.total, b.total, rtol=1e-5, atol=1e-5)
        assert torch.equal(a.t, b.t)


@pytest.mark.parametrize("stop", [1, 3, 4, 7])  # an epoch is 3 1/3 steps
def test_a_loaded_state_goes_on_bit_for_bit(store, stop):
    straight, state = make(store, dropout=0.3)
    for _ in range(8):
        straight(state)
    first, saved = make(store, dropout=0.3)
    for _ in range(stop):
        first(saved)
    again, loaded = make(store, dropout=0.3)
    for _ in range(2):
        again(loaded)  # a state that is elsewhere
    loaded.load_state_dict(saved.state_dict())
    while loaded.step < 8:
        again(loaded)
    assert all(torch.equal(a, b) for a, b in zip(flat(state), flat(loaded), strict=True))


@pytest.mark.parametrize("entry", ["network", "emas", "optimizer", "step"])
def test_every_entry_of_the_state_matters(store, entry):
    """The negative control of the test above: with one entry left out, the runs part."""
    straight, state = make(store)
    for _ in range(6):
        straight(state)
    first, saved = make(store)
    for _ in range(3):
        first(saved)
    again, loaded = make(store)
    again(loaded)
    loaded.load_state_dict({**saved.state_dict(), entry: loaded.state_dict()[entry]})
    for _ in range(3):
        again(loaded)
    assert not all(torch.equal(a, b) for a, b in zip(flat(state), flat(loaded), strict=True))


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, lambda p, lr: torch.optim.Adam(p, lr, fused=True)])
def test_a_gradient_that_is_not_finite_is_not_applied(store, optimizer):
    trainer, state = make(store, optimizer=optimizer)
    trainer(state)
    before = [p.clone() for p in state.network.parameters()]
    real, watch = trainer.batch, NonFiniteMonitor(state)

    def poisoned(step, start, stop):
        x, labels = real(step, start, stop)
        return x.clone().fill_(float("nan")), labels

    object.__setattr__(trainer, "batch", poisoned)
    watch.add(trainer(state))
    assert all(torch.equal(a, b) for a, b in zip(before, state.network.parameters(), strict=True))
    assert all(p.isfinite().all() for p in state.emas["ema"].network.parameters())
    watch.add(trainer(state))
    with pytest.raises(NonFinite) as found:
        watch.check()
    assert found.value.step == 1  # the first of them
    watch.check()


def test_clipping_bounds_the_update_and_reports_the_norm_before(store):
    trainer, state = make(store, optimizer=lambda p, lr: torch.optim.SGD(p, lr=1.0), max_grad_norm=0.01, lr=1.0)
    before = torch.cat([p.detach().flatten() for p in state.network.parameters()])
    metrics = trainer(state)
    moved = torch.cat([p.detach().flatten() for p in state.network.parameters()]) - before
    assert metrics.grad_norm > 0.01 and moved.norm() == pytest.approx(0.01, rel=1e-3)


def test_labels_are_dropped_each_image_on_its_own():
    dropped = Draws(0, 10_000, CPU).dropped(3, 0.1)
    assert 0.08 < dropped.float().mean() < 0.12
    assert not torch.equal(dropped, Draws(0, 10_000, CPU).dropped(4, 0.1))


@pytest.mark.parametrize("micro", [12, 5])
def test_the_half_gradient_is_that_of_every_other_image_and_leaves_no_trace(store, micro):
    trainer, state = make(store, micro_batch_size=micro)
    before = flat(state)
    norm, count = trainer.half_gradient_norm(state)
    assert all(torch.equal(a, b) for a, b in zip(before, flat(state), strict=True))
    assert all(p.grad is None for p in state.network.parameters())
    rows = [row for start in range(0, 12, micro) for row in range(start, min(start + micro, 12), 2)]
    t, _ = trainer.timesteps(trainer.draws.uniform(0), trainer.denoiser.schedule)
    x_0, labels = trainer.batch(0, 0, 12)
    cond = {"labels": torch.where(trainer.draws.dropped(0, 0.2), 4, labels)[rows]}
    noise = trainer.draws.noise(0, (1, 8, 8))[rows]
    trainer.loss(trainer.denoiser, x_0[rows], cond, t[rows], noise).total.mean().backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in state.network.parameters()])
    assert count == len(rows)
    torch.testing.assert_close(norm, expected)
