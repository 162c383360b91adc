"""Every number of edm.npz (k-diffusion in float64): Karras spacing, and the end points of its ODE samplers."""

import numpy as np
import pytest
import torch

from ddpm_cli.diffusion import prediction, samplers, schedule
from ddpm_cli.diffusion.denoiser import Denoised

SAMPLERS = {"euler": samplers.Euler, "heun": samplers.Heun, "dpm_2": samplers.DPM2, "dpmpp_2m": samplers.DPMSolverPP}
EDM = schedule.edm()


@pytest.fixture(scope="module")
def vectors(shared):
    return {k: torch.from_numpy(v) for k, v in np.load(shared / "vectors" / "edm.npz").items()}


def denoise(x, t):
    sigma = EDM.level(t).sigma
    return Denoised(torch.tanh(x / (1 + sigma)) * 0.9 / (1 + 0.1 * sigma))


@pytest.mark.parametrize("num_steps", [10, 18])
def test_karras_spacing_meets_the_reference_and_is_the_schedules_own(vectors, num_steps):
    sigmas = EDM.level(EDM.times(num_steps)).sigma
    torch.testing.assert_close(sigmas, vectors[f"karras_{num_steps}_0.002_80.0_7.0/sigmas"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_steps", [10, 18])
@pytest.mark.parametrize("name", SAMPLERS)
def test_end_points_meet_the_reference(vectors, name, num_steps):
    sampler = SAMPLERS[name](num_steps, "karras")
    end = samplers.run(sampler(denoise, EDM.prior(vectors["noise"]), EDM, None, None))
    expected = vectors[f"karras_{num_steps}_0.002_80.0_7.0/{name}"]
    assert end.dtype == torch.float64
    torch.testing.assert_close(end, expected, rtol=1e-8, atol=1e-8)


def test_preconditioning_meets_the_reference(vectors):
    level = schedule.NoiseLevel(torch.ones_like(vectors["precond/sigma"]), vectors["precond/sigma"])
    c_skip, c_out, c_in = prediction.EDM()(level, level)
    for name, value in {"c_skip": c_skip, "c_out": c_out, "c_in": c_in}.items():
        torch.testing.assert_close(value, vectors[f"precond/{name}"], rtol=1e-9, atol=1e-12)
