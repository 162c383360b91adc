"""Muon: what it makes of matrices, and that all else about it is as torch's optimisers have it."""

import math

import pytest
import torch
from torch import nn

from ddpm_cli.training.muon import Muon, is_matrix, orthogonal


def network():
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(4, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)]
    return nn.Sequential(*convolutions, nn.GroupNorm(4, 16), nn.Flatten(), nn.Linear(64, 10))


def learn(net, optimizer, steps=1, start=0):
    for step in range(start, start + steps):
        x = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(2, 8, 72), (1, 72, 8), (3, 16, 16)])
def test_singular_values_end_near_one_whatever_they_were(shape):
    torch.manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    spread = u * torch.logspace(0, -2.5, s.shape[1]) @ v
    values = torch.linalg.svdvals(orthogonal(spread))
    assert values.min() > 0.6 and values.max() < 1.3
    assert orthogonal(spread).shape == shape


@pytest.mark.parametrize("shape", [(40, 40, 360), (40, 4, 360), (40, 160, 40), (40, 64, 64), (40, 2, 2), (40, 2, 50)])
@pytest.mark.parametrize("spectrum", ["falling", "one far above the rest"])
def test_in_bf16_they_end_where_they_do_in_fp32(shape, spectrum):
    """The second spectrum is that of the last layer's gradients, of which three steps at a time made thousands."""
    torch.manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.logspace(0, -3, s.shape[1]).expand_as(s)
    if spectrum != "falling":
        values = torch.rand_like(s) * 10 ** -torch.linspace(0.5, 2, len(s))[:, None]
        values[:, 0] = 1
    spread = u * values[:, None] @ v
    exact = orthogonal(spread)
    found, plain = ((exact - way(spread, torch.bfloat16)).norm(dim=(1, 2)) for way in (orthogonal, published))
    assert torch.linalg.matrix_norm(orthogonal(spread, torch.bfloat16).float(), 2).max() < 1.22
    assert found.mean() < 1.3 * plain.mean() + 0.01


def test_the_directions_are_kept_and_the_iteration_is_the_papers():
    torch.manual_seed(0)
    x = torch.randn(1, 8, 72)
    torch.testing.assert_close(orthogonal(x), published(x), rtol=1e-4, atol=1e-5)
    assert (orthogonal(torch.zeros(2, 3, 4)) == 0).all()


def published(x, dtype=torch.float32):
    """As Jordan et al. write it."""
    turned = x.shape[1] > x.shape[2]
    x = ((x.mT if turned else x) / x.norm(dim=(1, 2), keepdim=True)).to(dtype)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if turned else x


def test_a_step_is_momentum_made_orthogonal_with_adamws_size_and_decay():
    net, lr = network(), 0.01
    optimizer = Muon(net.parameters(), lr=lr, momentum=0.9, weight_decay=0.1)
    weight = net[1].weight
    momentum = torch.zeros(16, 144)
    for step in range(3):
        before = weight.detach().clone()
        learn(net, optimizer, start=step)
        momentum = 0.9 * momentum + weight.grad.flatten(1)
        update = orthogonal((weight.grad.flatten(1) + 0.9 * momentum)[None])[0].view_as(weight)
        expected = before * (1 - lr * 0.1) - lr * 0.2 * math.sqrt(144) * update
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-6)


def test_biases_and_norms_are_adamws():
    net, other = network(), network()
    other.load_state_dict(net.state_dict())
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}
    muon = Muon(net.parameters(), **settings)
    adamw = torch.optim.AdamW([p for p in other.parameters() if not is_matrix(p)], fused=True, **settings)
    learn(net, muon)
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        theirs.grad = mine.grad
    adamw.step()
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert is_matrix(mine) or torch.equal(mine, theirs)


def test_found_inf_leaves_out_the_whole_step_to_the_bit():
    net = network()
    optimizer = Muon(net.parameters())
    learn(net, optimizer, steps=2)
    weights = [p.detach().clone() for p in net.parameters()]
    state = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in net.parameters()]
    for p in net.parameters():
        p.grad = torch.full_like(p, math.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(p, before) for p, before in zip(net.parameters(), weights, strict=True))
    for p, before in zip(net.parameters(), state, strict=True):
        assert all(torch.equal(optimizer.state[p][name], value) for name, value in before.items())


def test_its_state_goes_through_a_checkpoint_to_the_bit(tmp_path):
    whole, first, second = network(), network(), network()
    optimizer = Muon(whole.parameters())
    learn(whole, optimizer, steps=6)
    optimizer = Muon(first.parameters())
    learn(first, optimizer, steps=3)
    torch.save({"net": first.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    saved = torch.load(tmp_path / "a.pt", weights_only=True)
    second.load_state_dict(saved["net"])
    optimizer = Muon(second.parameters())
    optimizer.load_state_dict(saved["optimizer"])
    learn(second, optimizer, steps=3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
