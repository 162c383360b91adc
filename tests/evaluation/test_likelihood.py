"""Bits per dimension of held-out images: alike in any batches, and what they add up from is told."""

import pytest
import torch
from training.test_step import make, store

from ddpm_cli.diffusion import likelihood as exact
from ddpm_cli.errors import WorldError
from ddpm_cli.evaluation.likelihood import Likelihood

__all__ = ["store"]


@pytest.fixture(scope="module")
def found(store):
    torch.manual_seed(0)
    trainer, _ = make(store)
    denoiser = trainer.denoiser.eval().requires_grad_(False)
    measure = Likelihood(denoiser, denoiser.variance, store, 0, torch.device("cpu"), num_strata=8, tolerance=1e-2)
    return measure, measure(range(6))


def test_an_images_likelihood_does_not_depend_on_its_batch(found):
    measure, whole = found
    parts = [measure(range(0, 1)), measure([1, 2, 3]), measure([4, 5])]
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value, rtol=1e-3, atol=1e-4)


def test_scores_tell_their_parts_and_their_errors(found):
    measure, whole = found
    scores = measure.scores(whole)
    bound, ode = scores["nll_bound"], scores["nll_ode"]
    assert bound.better == ode.better == "lower" and bound.n == ode.n == 6
    parts = sum(v for k, v in bound.extra.items() if k in ("prior", "decoder") or k.startswith("t_"))
    assert parts == pytest.approx(bound.value)
    each = whole["prior"] + whole["terms"].sum(2).mean(1)
    assert bound.extra["standard_error"] == pytest.approx(float(each.std()) / 6**0.5)
    assert bound.extra["draws_error"] > 0 and 0 <= ode.extra["solver_error"] <= ode.extra["solver_error_worst"]
    assert sum(k.startswith("t_") for k in bound.extra) == 7  # of 8 strata, the first of which is the decoder's
    assert len(exact.strata(1000, 8)) == 8


def test_another_seed_agrees_within_the_intervals(found):
    measure, whole = found
    other = Likelihood(
        measure.denoiser, measure.variance, measure.store, 1, measure.device, num_strata=8, tolerance=1e-2
    )
    first, second = measure.scores(whole), other.scores(other(range(6)))
    assert all(first[name].low < second[name].value < first[name].high for name in first)


def test_what_is_not_finite_is_told(found):
    measure, whole = found
    with pytest.raises(WorldError, match="not finite"):
        measure.scores({**whole, "ode": torch.full_like(whole["ode"], torch.nan)})
