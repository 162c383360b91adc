"""What each kind of guidance and of thresholding claims."""

import pytest
import torch
from doubles import exact_gaussian

from ddpm_cli.diffusion import schedule
from ddpm_cli.diffusion.denoiser import Denoised, clipped, thresholded
from ddpm_cli.diffusion.guidance import APG, CADS, Guidance, annealed, by_weaker_model, classifier_free, guided
from ddpm_cli.diffusion.prediction import X0, V

COSINE = schedule.cosine(100)
T = torch.tensor(50.0, dtype=torch.float64)
X = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([3, 5])
NULL = 10


class Labelled:
    """Its estimate is its label everywhere, plus what is seen of x; counts its calls and notes their batch sizes."""

    def __init__(self):
        self.batches = []

    def __call__(self, x, t, cond=None):
        self.batches.append(len(x))
        label = cond["labels"].to(x).reshape(-1, 1, 1, 1)
        return Denoised(label + 0.1 * x, x)


def cfg(denoise, **knobs):
    return guided(denoise, classifier_free(denoise, NULL), Guidance(**knobs), COSINE, X0())


def test_scale_one_is_the_denoiser_itself():
    denoise = Labelled()
    assert cfg(denoise, scale=1.0) is denoise


def test_scale_goes_from_the_null_label_past_the_label_in_one_batch():
    denoise = Labelled()
    for scale in (0.0, 0.5, 3.0):
        guided_x_0 = cfg(denoise, scale=scale)(X, T, {"labels": LABELS}).x_0 - 0.1 * X
        expected = (NULL + scale * (LABELS - NULL)).double().reshape(-1, 1, 1, 1).expand_as(X)
        torch.testing.assert_close(guided_x_0, expected)
    assert denoise.batches == [4, 4, 4]


def test_variance_output_is_the_conditional_one():
    denoised = cfg(Labelled(), scale=2.0)(X, T, {"labels": LABELS})
    assert torch.equal(denoised.raw, X)


def test_guidance_needs_labels():
    with pytest.raises(ValueError, match="class-conditional"):
        cfg(Labelled(), scale=2.0)(X, T, None)


def test_outside_the_interval_there_is_no_guidance_and_no_second_evaluation():
    denoise = Labelled()
    level = COSINE.level(T)
    ratio = float(level.sigma / level.alpha)
    for interval, batch in (((ratio / 2, ratio), 4), ((ratio, 2 * ratio), 2), ((0.0, ratio / 2), 2)):
        inner = cfg(denoise, scale=3.0, interval=interval)(X, T, {"labels": LABELS}).x_0
        assert denoise.batches[-1] == batch
        assert torch.equal(inner, denoise(X, T, {"labels": LABELS}).x_0) == (batch == 2)


def test_rescale_gives_back_the_unguided_standard_deviation():
    def denoise(x, t, cond):
        return Denoised(x * (1 + cond["labels"].to(x).reshape(-1, 1, 1, 1)))

    cond = {"labels": LABELS}
    stds = [cfg(denoise, scale=-2.0, rescale=share)(X, T, cond).x_0.std((1, 2, 3)) for share in (0.0, 0.5, 1.0)]
    torch.testing.assert_close(stds[2], denoise(X, T, cond).x_0.std((1, 2, 3)))
    torch.testing.assert_close(stds[1], (stds[0] + stds[2]) / 2)
    assert not torch.allclose(stds[0], stds[2])


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_rescale_acts_on_the_networks_output(share):
    """Lin et al. 2023, Eq. 15 and 16, for a network that predicts v."""

    def network(x, label):
        return 0.3 * x.flip(-1) * (1 + label)

    def denoise(x, t, cond):
        level = COSINE.level(t)
        return Denoised(level.alpha * x - level.sigma * network(x, cond["labels"].to(x).reshape(-1, 1, 1, 1)))

    pair = classifier_free(denoise, NULL)
    ours = guided(denoise, pair, Guidance(4.0, rescale=share), COSINE, V())(X, T, {"labels": LABELS}).x_0
    positive, negative = network(X, LABELS.to(X).reshape(-1, 1, 1, 1)), network(X, torch.tensor(float(NULL)))
    v = negative + 4 * (positive - negative)
    rescaled = v * positive.std((1, 2, 3), keepdim=True) / v.std((1, 2, 3), keepdim=True)
    v = share * rescaled + (1 - share) * v
    level = COSINE.level(T)
    torch.testing.assert_close(ours, level.alpha * X - level.sigma * v)


def test_autoguidance_moves_away_from_the_weaker_model():
    good, bad = exact_gaussian(COSINE, 0.3, 0.2), exact_gaussian(COSINE, 0.0, 0.6)
    x_0 = guided(good, by_weaker_model(good, bad), Guidance(2.0), COSINE, X0())(X, T).x_0
    torch.testing.assert_close(x_0, 2 * good(X, T).x_0 - bad(X, T).x_0)


# APG


def published(cond, uncond, scale, eta, r, running, beta):
    """Sadat et al. 2024b, Algorithm 1, of one image as a vector; the running average is returned too."""
    diff = cond - uncond
    if beta:
        diff = running = diff + beta * running
    diff = diff * min(1.0, r / float(diff.norm()))
    direction = cond / cond.norm()
    parallel = (diff @ direction) * direction
    return cond + (scale - 1) * (diff - parallel + eta * parallel), running


def bent(x, t, cond):
    """An estimate whose difference between labels is of no image's direction."""
    return Denoised((1.3 * x.flip(-1) * cond["labels"].to(x).reshape(-1, 1, 1, 1)).sin() + 0.2 * x)


@pytest.mark.parametrize("eta, r, beta", [(0.0, 1e9, 0.0), (1.0, 1.5, 0.0), (1.0, 1e9, -0.5), (0.3, 1.5, -0.75)])
def test_apg_is_the_published_algorithm_along_a_walk(eta, r, beta):
    denoise = cfg(bent, scale=4.0, apg=APG(eta, r, beta))
    running = torch.zeros(2, 16, dtype=torch.float64)
    for t in (T, T - 10, T - 10, T - 30):
        x = X * float(t) / 50
        made = denoise(x, t, {"labels": LABELS}).x_0.flatten(1)
        cond, uncond = (bent(x, t, {"labels": y}).x_0.flatten(1) for y in (LABELS, torch.full_like(LABELS, NULL)))
        for i in range(2):
            expected, running[i] = published(cond[i], uncond[i], 4.0, eta, r, running[i], beta)
            torch.testing.assert_close(made[i], expected)


def test_momentum_is_an_images_own_and_begins_anew_with_each_walk():
    def walked(x, labels, denoise):
        return torch.stack([denoise(x, t, {"labels": labels}).x_0 for t in (T, T / 2, T / 4)])

    denoise, apg = cfg(bent, scale=3.0, apg=APG(momentum=-0.5)), APG(momentum=-0.5)
    together = walked(X, LABELS, denoise)
    assert torch.equal(walked(X, LABELS, denoise), together)
    alone = [walked(X[i : i + 1], LABELS[i : i + 1], cfg(bent, scale=3.0, apg=apg)) for i in range(2)]
    torch.testing.assert_close(torch.cat(alone, 1), together)
    plain = walked(X, LABELS, cfg(bent, scale=3.0))
    assert torch.allclose(together[0], plain[0]) and not torch.allclose(together[1], plain[1])


def test_apg_that_changes_nothing_is_plain_guidance_to_the_bit():
    assert torch.equal(*(cfg(bent, scale=3.0, **k)(X, T, {"labels": LABELS}).x_0 for k in ({"apg": APG()}, {})))


# CADS


def embed(labels):
    return torch.nn.functional.one_hot(labels, 16).double() * 2 + torch.arange(16)


def seen_by(cads, t, labels=LABELS):
    """The embedding the network is given at time t, None where it is left to the labels."""
    seen = []

    def denoise(x, t, cond):
        seen.append(cond.get("embedding"))
        return Denoised(x)

    def draw(key, width):
        return torch.randn(2, width, generator=torch.Generator().manual_seed(key))

    annealed(denoise, cads, embed, draw, 100, NULL)(X, torch.tensor(t), {"labels": labels})
    return seen[0]


def test_cads_leaves_the_last_part_of_the_walk_alone_and_hides_the_class_in_the_first():
    cads = CADS(noise=0.5, start=0.6, end=0.9, mixing=0.0)
    assert seen_by(cads, 60.0) is None
    half = seen_by(cads, 75.0)
    assert (half - 0.5**0.5 * embed(LABELS)).std() < 1
    early = seen_by(cads, 95.0)
    assert early.abs().max() < 5 * cads.noise  # nothing of an embedding that reaches 17 is left
    assert cads.gamma(0.75) == pytest.approx(0.5)


def test_cads_with_mixing_keeps_the_embeddings_mean_and_deviation():
    for t in (70.0, 95.0):
        noisy, y = seen_by(CADS(), t), embed(LABELS)
        torch.testing.assert_close(noisy.mean(1), y.mean(1))
        torch.testing.assert_close(noisy.std(1), y.std(1))
        assert (noisy - y).abs().max() > 0.2


def test_cads_leaves_the_null_label_alone_also_in_a_guided_batch():
    embedding = seen_by(CADS(), 95.0, torch.tensor([3, 5, NULL, NULL]))
    assert torch.equal(embedding[2:], embed(torch.tensor([NULL, NULL])))
    assert not torch.allclose(embedding[:2], embed(LABELS))


# Thresholding


def test_static_clipping_bounds_each_number():
    denoise = clipped(lambda x, t, cond=None: Denoised(3 * x))
    assert torch.equal(denoise(X, T).x_0, (3 * X).clamp(-1, 1))


def test_dynamic_thresholding_divides_where_the_percentile_exceeds_one_and_else_clips():
    values = torch.linspace(-1, 1, 201, dtype=torch.float64).repeat(2, 1)
    values[1] *= 4
    x_0 = thresholded(lambda x, t, cond=None: Denoised(x), percentile=0.9)(values, T).x_0
    torch.testing.assert_close(x_0[0], values[0])
    limit = 0.9 * 4
    torch.testing.assert_close(x_0[1], (values[1] / limit).clamp(-1, 1), rtol=1e-5, atol=1e-5)
