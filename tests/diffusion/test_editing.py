"""What each edit claims, with exact denoisers."""

import pytest
import torch
from doubles import exact_gaussian, exact_mixture

from ddpm_cli.diffusion import samplers, schedule, variance
from ddpm_cli.diffusion.denoiser import Denoised
from ddpm_cli.diffusion.editing import Inpaint, Interpolate, Reconstruct, SDEdit, Source, slerp
from ddpm_cli.diffusion.samplers import run

SCHEDULES = {"cosine": schedule.cosine(), "edm": schedule.edm()}
SMALL = variance.FixedSmall()
ALL = [
    samplers.Ancestral(10),
    samplers.DDIM(10),
    samplers.DDIM(10, eta=1.0),
    samplers.DPMSolverPP(10),
    samplers.DPMSolverPPSDE(10),
    samplers.UniPC(10),
    samplers.GradientEstimation(10),
    samplers.Euler(10),
    samplers.Heun(10),
    samplers.DPM2(10),
    samplers.ChurnedHeun(10),
]


def noise_of(shape):
    return lambda i: torch.randn(shape, generator=torch.Generator().manual_seed(i + 1), dtype=torch.float64)


def images(count=2, seed=9):
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def edited(edit, sampler, name, source, denoise=None):
    noise_schedule = SCHEDULES[name]
    denoise = denoise or exact_mixture(noise_schedule)
    return run(edit(denoise, sampler, noise_schedule, SMALL, noise_of(source.image.shape), source))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("jump_length", [1, 4])
@pytest.mark.parametrize("sampler", ALL, ids=lambda s: type(s).__name__)
def test_inpainting_keeps_the_known_pixels_exactly_with_every_sampler(sampler, name, jump_length):
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    mask[..., 2:] = True
    x = edited(Inpaint(resample=2, jump_length=jump_length), sampler, name, Source(images(), mask=mask))
    assert torch.equal(x[~mask], images()[~mask])
    assert not torch.isclose(x[mask], images()[mask]).any() and x.isfinite().all()


def test_resampling_lets_the_new_agree_with_the_known():
    # Data: all pixels of an image are the same number, N(0, 1); known is 0.7 in one half.
    noise_schedule = SCHEDULES["cosine"]
    size = 16

    def denoise(x, t, cond=None):
        level = noise_schedule.level(t)
        gain = level.alpha * size / (level.alpha**2 * size + level.sigma**2)
        return Denoised((gain * x.mean((1, 2, 3), keepdim=True)).expand_as(x))

    image = torch.full((200, 1, 4, 4), 0.7, dtype=torch.float64)
    mask = torch.zeros_like(image, dtype=torch.bool)
    mask[..., 2:] = True
    errors = []
    for resample, jump_length in ((1, 1), (10, 1), (10, 5)):
        edit = Inpaint(resample, jump_length)
        x = edited(edit, samplers.Ancestral(50), "cosine", Source(image, mask=mask), denoise)
        errors.append((x[mask] - 0.7).abs().mean())
    assert max(errors[1:]) < 0.15 and errors[1] < errors[0] / 2 and errors[2] < 0.7 * errors[0]


@pytest.mark.parametrize("jump_length", [1, 3, 10, 99])
def test_a_walk_with_jumps_makes_every_step_as_often_as_it_says(jump_length):
    calls, exact = [], exact_gaussian(SCHEDULES["cosine"], 0.1, 0.5)

    def denoise(x, t, cond=None):
        calls.append(float(t))
        return exact(x, t)

    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    edited(Inpaint(4, jump_length), samplers.DDIM(10), "cosine", Source(images(), mask=mask), denoise)
    last = 1 if jump_length in (1, 3) else 4  # the last step alone is made once
    assert [calls.count(t) for t in range(1000, 0, -100)] == [4] * 9 + [last]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_weak_edit_stays_near_the_image_and_a_strong_one_does_not(name):
    source = Source(images())
    far = [
        (edited(SDEdit(strength), samplers.DDIM(100), name, source) - source.image).abs().mean()
        for strength in (0.05, 0.5, 1.0)
    ]
    assert far[0] < 0.15 < far[2] and far[0] < far[1] < far[2] + 0.1


def test_an_edit_without_a_step_is_refused():
    with pytest.raises(ValueError, match="edit.strength=0.05 leaves no step"):
        edited(SDEdit(0.05), samplers.DDIM(10), "cosine", Source(images()))


@pytest.mark.parametrize("name", SCHEDULES)
def test_inversion_leads_back_to_the_image(name):
    denoise = exact_gaussian(SCHEDULES[name], 0.1, 0.5)
    for count, tolerance in ((50, 0.03), (500, 0.003)):
        x = edited(Reconstruct(), samplers.DDIM(count, "karras"), name, Source(images()), denoise)
        assert (x - images()).abs().max() < tolerance


@pytest.mark.parametrize("name", SCHEDULES)
def test_inversion_of_data_is_noise(name):
    noise_schedule = SCHEDULES[name]
    data = 0.1 + 0.5 * noise_of((4000, 1))(3)
    x_T = run(samplers.DDIMInversion(200, "karras")(exact_gaussian(noise_schedule, 0.1, 0.5), data, noise_schedule))
    assert float(x_T.std() / noise_schedule.prior_scale) == pytest.approx(1, abs=0.1)
    assert abs(float(x_T.mean() / noise_schedule.prior_scale)) < 0.05


@pytest.mark.parametrize("edit", [Reconstruct(), Interpolate()])
@pytest.mark.parametrize("sampler", [samplers.Ancestral(10), samplers.DDIM(10, eta=0.5)])
def test_what_walks_back_needs_a_sampler_without_noise(edit, sampler):
    with pytest.raises(ValueError, match="sampler.eta=0"):
        edited(edit, sampler, "cosine", Source(images(), to=images(), share=torch.ones(2)))


def test_interpolation_leads_from_one_image_to_the_other():
    source = Source(
        images(1).expand(5, -1, -1, -1), to=images(1, 7).expand(5, -1, -1, -1), share=torch.linspace(0, 1, 5)
    )
    x = edited(Interpolate(), samplers.DDIM(300), "cosine", source, exact_gaussian(SCHEDULES["cosine"], 0.0, 0.5))
    assert (x[0] - images(1)[0]).abs().max() < 0.05 and (x[-1] - images(1, 7)[0]).abs().max() < 0.05
    distance = (x - images(1, 7)).flatten(1).norm(dim=1)
    assert (distance.diff() < 0).all()


def test_slerp_keeps_the_length_of_noise_and_its_ends():
    a, b = torch.randn(2, 3, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    middle = slerp(a, b, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(middle[0], a[0])
    torch.testing.assert_close(middle[2], b[2])
    assert float(middle[1].norm()) == pytest.approx(float((a[1].norm() + b[1].norm()) / 2), rel=0.02)
    torch.testing.assert_close(slerp(a, a, torch.full((3,), 0.3)), a)
