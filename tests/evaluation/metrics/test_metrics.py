"""Every metric against its formula written out, its interval against what other seeds give, and what it refuses."""

import math

import numpy as np
import pytest
import torch

from ddpm_cli.evaluation.metrics import kid as kid_module
from ddpm_cli.evaluation.metrics import precision_recall as precision_recall_module
from ddpm_cli.evaluation.metrics import score
from ddpm_cli.evaluation.metrics.fid import fid
from ddpm_cli.evaluation.metrics.inception_score import inception_score
from ddpm_cli.evaluation.metrics.kid import kid
from ddpm_cli.evaluation.metrics.precision_recall import precision_recall

METRICS = ("fid", "kid", "inception_score", "precision_recall")


def drawn(n, dim, seed, shift=0.0):
    """(n, dim) Gaussian features, correlated, of which some directions are weak."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99), dtype=torch.float64) / dim**0.5
    return (torch.randn(n, dim, generator=draw, dtype=torch.float64) @ mix * (1 + shift) + shift).float()


def probabilities_of(features):
    mix = torch.randn(features.shape[1], 7, generator=torch.Generator().manual_seed(3))
    return (2 * features @ mix).softmax(1)


@pytest.fixture(scope="module")
def sets():
    return drawn(400, 12, 0, 0.3), drawn(700, 12, 1)


# The values


def naive_fid(x, y):
    import scipy.linalg

    x, y = x.double().numpy(), y.double().numpy()
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real))


def naive_kid(x, y):
    x, y = x.double().numpy(), y.double().numpy()

    def kernel(a, b):
        return np.array([[(np.dot(p, q) / len(p) + 1) ** 3 for q in b] for p in a])

    xx, yy, n = kernel(x, x), kernel(y, y), len(x)
    return (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (n * (n - 1)) - 2 * kernel(x, y).mean()


def naive_share(x, y, k=3):
    """How many rows of x are nearer to a row of y than that row's k-th neighbour in y."""
    own, other = torch.cdist(y.double(), y.double()), torch.cdist(x.double(), y.double())
    radii = own.sort(1).values[:, k]  # the nearest is the row itself
    return float((other <= radii).any(1).double().mean())


def test_fid_is_its_formula(sets):
    assert fid(*sets).value == pytest.approx(naive_fid(*sets), rel=1e-6)


def test_fid_of_gaussians_whose_distance_is_known_is_found_at_infinitely_many_images():
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 16, generator=draw, dtype=torch.float64) for n in (4000, 100_000))
    found = fid(2 * x + 0.5, y)
    assert found.value > 16 * (0.25 + 1) + 0.01 * 16  # too high by about 0.02 a dimension
    assert found.extra["extrapolated"] == pytest.approx(16 * (0.25 + 1), rel=0.02)


def test_fid_is_not_extrapolated_from_parts_that_are_too_small():
    x, y = drawn(300, 12, 0), drawn(700, 12, 1)
    assert fid(x[:47], y).extra["extrapolated"] is None
    assert fid(x[:48], y).extra["extrapolated"] is not None


def test_fid_of_fewer_images_than_features_is_its_formula_too():
    x, y = drawn(8, 12, 0), drawn(700, 12, 1)
    assert fid(x, y).value == pytest.approx(naive_fid(x, y), rel=1e-4)


def test_kid_is_the_mean_over_all_pairs(sets):
    x, y = sets[0][:60], sets[1][:60]
    assert kid(x, y).value == pytest.approx(naive_kid(x, y), rel=1e-9)


def test_kid_in_blocks_is_the_mean_of_the_blocks(sets, monkeypatch):
    monkeypatch.setattr(kid_module, "BLOCK", 30)
    x, y = sets[0][:60], sets[1][:60]
    parts = [naive_kid(x[:30], y[:30]), naive_kid(x[30:], y[30:])]
    assert kid(x, y).value == pytest.approx(sum(parts) / 2, rel=1e-9)


def test_precision_and_recall_are_shares_inside_the_others_manifold(sets):
    x, y = sets[0], sets[1][: len(sets[0])]
    found = precision_recall(*sets)
    assert found["precision"].value == naive_share(x, y) and found["recall"].value == naive_share(y, x)
    assert 0 < found["precision"].value < 1 and 0 < found["recall"].value < 1


def test_inception_score_is_its_formula(sets):
    p = probabilities_of(sets[0]).double()
    expected = math.exp(float((p * (p / p.mean(0)).log()).sum(1).mean()))
    assert inception_score(p).value == pytest.approx(expected, rel=1e-6)
    assert inception_score(torch.eye(5).repeat(4, 1)).value == pytest.approx(5)  # certain, and all classes alike
    assert inception_score(torch.eye(5)[:1].repeat(20, 1)).value == pytest.approx(1)  # one class


def test_small_chunks_change_nothing_but_rounding(sets, monkeypatch):
    whole = {**precision_recall(*sets), "kid": kid(*sets)}
    for module in (kid_module, precision_recall_module):
        monkeypatch.setattr(module, "CHUNK", 1500)
    for name, found in {**precision_recall(*sets), "kid": kid(*sets)}.items():
        assert found.value == pytest.approx(whole[name].value, rel=1e-9), name
        assert found.high == pytest.approx(whole[name].high, rel=1e-9), name


@pytest.mark.slow
def test_the_metrics_are_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    class Pass(torch.nn.Module):
        """Features in place of an extractor: the images are the features."""

        num_features = 12

        def forward(self, x):
            return x.flatten(1)

    x, y = drawn(400, 12, 0, 0.3), drawn(400, 12, 1)
    images = {name: rows.view(-1, 3, 2, 2) for name, rows in {"x": x, "y": y}.items()}

    def of(metric):
        metric.update(images["y"], real=True)
        metric.update(images["x"], real=False)
        return metric.compute()

    theirs = of(FrechetInceptionDistance(Pass(), normalize=True, input_img_size=(3, 2, 2)).set_dtype(torch.float64))
    assert fid(x, y).value == pytest.approx(float(theirs), rel=1e-4)
    theirs = of(KernelInceptionDistance(Pass(), subsets=1, subset_size=400, normalize=True))[0]
    assert kid(x, y).value == pytest.approx(float(theirs), rel=1e-4)
    logits = 2 * x[:, :10]
    metric = InceptionScore(Pass(), splits=1)
    metric.update(logits)
    assert inception_score(logits.softmax(1)).value == pytest.approx(float(metric.compute()[0]), rel=1e-4)


# The intervals


@pytest.mark.parametrize(("dim", "n", "shift"), [(4, 300, 0.0), (24, 300, 0.0), (24, 300, 0.4)])
def test_two_seeds_agree_within_the_interval_in_nine_of_ten_trials_and_the_interval_is_no_wider_than_that_takes(
    dim, n, shift
):
    real, found = drawn(2000, dim, 1000), {}
    for seed in range(24):
        x = drawn(n, dim, seed, shift)
        for name in METRICS:
            for key, one in score(name, x, probabilities_of(x), real).items():
                found.setdefault(key, []).append(one)
    for key, scores in found.items():
        pairs = [(a, b) for a in scores for b in scores if a is not b]
        agree = np.mean([a.low <= b.value <= a.high for a, b in pairs])
        assert agree >= 0.9, (key, agree)
        width = np.mean([one.high - one.low for one in scores]) / (2 * 1.96 * 2**0.5)
        # recall's jackknife errs towards the safe side, and so does FID's first order where the sets are the same
        assert width < 2.7 * np.std([one.value for one in scores]), key
        assert all(one.n == n and one.low <= one.value <= one.high for one in scores)


def test_an_interval_shrinks_with_the_root_of_n():
    real = drawn(2000, 8, 1000)
    for name in METRICS:
        few, many = (score(name, x, probabilities_of(x), real) for x in (drawn(200, 8, 0, 0.5), drawn(1800, 8, 0, 0.5)))
        for key in few.keys() - {"recall"}:  # whose value is another with another n
            ratio = (few[key].high - few[key].low) / (many[key].high - many[key].low)
            assert 2 < ratio < 4.5, (key, ratio)


# What is refused


@pytest.mark.parametrize("name", [name for name in METRICS if name != "inception_score"])
def test_features_that_are_the_same_for_every_real_image_are_refused(name):
    constant = torch.full((50, 4), 3.0) + 1e-6 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="same features .* choose other features"):
        score(name, constant, None, constant)


@pytest.mark.parametrize("name", [name for name in METRICS if name != "inception_score"])
def test_images_that_are_all_the_same_score_badly_beside_real_ones_that_are_not(name, sets):
    found = score(name, sets[0][:1].repeat(100, 1), None, sets[1])
    assert next(iter(found.values())).value not in (0, math.nan) or found["recall"].value == 0


@pytest.mark.parametrize("name", METRICS)
def test_features_that_are_no_numbers_are_refused(name, sets):
    bad = sets[0].clone()
    bad[3, 1] = math.nan
    with pytest.raises(ValueError, match="1 of 400 .*not finite"):
        score(name, bad, bad, sets[1])


@pytest.mark.parametrize("name", METRICS)
def test_too_few_images_are_refused(name, sets):
    with pytest.raises(ValueError, match="n of at least"):
        score(name, sets[0][:1], probabilities_of(sets[0][:1]), sets[1])


def test_accuracy_is_the_share_that_is_read_as_asked_for():
    probabilities = torch.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]]
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 0, 0])
    (found,) = score("accuracy", probabilities, probabilities, probabilities, labels).values()
    assert found.value == 0.75 and 0 <= found.low < 0.75 < found.high <= 1 and found.better == "higher"
    (all_right,) = score("accuracy", probabilities, probabilities, probabilities, probabilities.argmax(1)).values()
    assert all_right.value == all_right.high == 1 and all_right.low < 0.9  # eight are no certainty
    with pytest.raises(ValueError, match="drawn for a class"):
        score("accuracy", probabilities, probabilities, probabilities)
    with pytest.raises(ValueError, match="accuracy needs class probabilities"):
        score("accuracy", probabilities, None, probabilities, labels)


def test_an_inception_score_without_probabilities_is_refused(sets):
    with pytest.raises(ValueError, match="features=inception"):
        score("inception_score", sets[0], None, sets[1])
    with pytest.raises(ValueError, match="sum to 1"):
        inception_score(sets[0])
