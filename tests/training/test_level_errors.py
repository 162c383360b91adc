"""What runs are compared by: the error of v on fixed images and noise, by noise level."""

from dataclasses import replace

import pytest
import torch
from doubles import exact_gaussian
from training.test_step import make, store

from ddpm_cli.diffusion import prediction, schedule, variance
from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.training.level_errors import LOG_SNRS, FixedImages, LevelErrors

__all__ = ["store"]
CPU = torch.device("cpu")


class Gaussian:
    """An exact denoiser of Gaussian images, with what a Denoiser has."""

    variance = variance.FixedSmall()

    def __init__(self, noise_schedule, std):
        self.schedule, self._denoise = noise_schedule, exact_gaussian(noise_schedule, 0.0, std)

    def __call__(self, x_t, t, cond):
        return self._denoise(x_t, t, cond)


def gaussian_images(std, count=4096):
    draw = torch.Generator().manual_seed(0)
    x_0, noise = (torch.randn(count, 1, 4, 4, generator=draw) for _ in range(2))
    return FixedImages(std * x_0, None, noise)


@pytest.mark.parametrize("noise_schedule", [schedule.cosine(), schedule.linear(500), schedule.edm()])
def test_the_error_is_that_of_the_formula_whatever_the_schedule(noise_schedule):
    """Of N(0, std²) the best estimate leaves std² sigma² / (alpha² std² + sigma²), so v (SNR + 1) times that."""
    std = 0.5
    found = LevelErrors({"train": gaussian_images(std)}, None, 4096)(Gaussian(noise_schedule, std))
    for level in LOG_SNRS:
        snr = torch.tensor(float(level)).exp()
        expected = (snr + 1) * std**2 / (snr * std**2 + 1)
        assert found[f"v_error_train_at_{level:+d}"] == pytest.approx(float(expected), rel=0.05)


def test_levels_beyond_a_schedules_ends_are_left_out():
    short = schedule.from_log_snr(torch.linspace(4, -4, 50))
    found = LevelErrors({"train": gaussian_images(0.5, 64)}, None, 64)(Gaussian(short, 0.5))
    assert {name for name in found if "_at_" in name} == {f"v_error_train_at_{n:+d}" for n in (3, 1, -1, -3)}


def test_images_and_noise_are_the_same_in_every_run_and_the_batch_size_does_not_matter(store):
    torch.rand(3)
    first, second = FixedImages.of(store, CPU), FixedImages.of(store, CPU)
    assert torch.equal(first.x_0, second.x_0) and torch.equal(first.noise, second.noise)
    trainer, _ = make(store)
    whole, parts = (LevelErrors({"train": first}, 4, size)(trainer.denoiser) for size in (64, 7))
    assert whole.keys() == parts.keys() and whole == pytest.approx(parts, rel=1e-5)


def test_a_network_that_knows_its_training_images_errs_on_the_others_alone(store):
    fixed = FixedImages.of(store, CPU)

    class Memory(Gaussian):
        def __call__(self, x_t, t, cond):
            return Denoised(fixed.x_0[: len(x_t)])

    splits = {"train": fixed, "heldout": replace(fixed, x_0=fixed.x_0.flip(0))}
    found = LevelErrors(splits, None, 64)(Memory(schedule.cosine(), 0.5))
    assert found["v_error_train"] == 0 and found["v_error_heldout"] > 0.1


@pytest.mark.parametrize(
    ("sigma", "raw", "place"),
    [(variance.LearnedRange(), -1.0, 0.0), (variance.LearnedRange(), 1.0, 1.0), (variance.Learned(), 0.0, 1.0)],
)
def test_the_place_of_a_learned_sigma_is_0_at_beta_tilde_and_1_at_beta(sigma, raw, place):
    class Constant(torch.nn.Module):
        def forward(self, x, time, cond):
            return torch.cat([x, torch.full_like(x, raw)], 1)

    denoiser = Denoiser(Constant(), schedule.cosine(), prediction.V(), sigma)
    found = LevelErrors({"heldout": gaussian_images(0.5, 64)}, None, 64)(denoiser)
    places = [value for name, value in found.items() if name.startswith("sigma_at_")]
    assert len(places) == len(LOG_SNRS) and places == pytest.approx([place] * len(places), abs=5e-3)
