"""Samplers: (denoise, x_T, schedule, variance, noise) -> one SamplerStep after another, from noise to image.

denoise(x_t, t) -> Denoised has its conditioning bound; noise(i) gives step i's standard normal tensor of x's shape. A
sampler is a linear combination, at each step, of the state, the estimates of x_0 and noise; the coefficients of all
steps are computed in float64 when it is called (so what cannot be done is refused then) and used as plain numbers: no
host sync in the loop, and the state keeps x_T's dtype. ODE samplers step in x/alpha over sigma/alpha, where DDPM and
EDM are the same equation (Karras et al. 2022, Eq. 4).
"""

from ddpm_cli.diffusion.samplers.base import (
    BoundDenoise,
    Grid,
    GridSampler,
    Sampler,
    SamplerStep,
    StepNoise,
    grid_of,
    run,
)
from ddpm_cli.diffusion.samplers.ddpm import DDIM, Ancestral, Consistency, DDIMInversion
from ddpm_cli.diffusion.samplers.multistep import DPMSolverPP, DPMSolverPPSDE, GradientEstimation, UniPC
from ddpm_cli.diffusion.samplers.ode import DPM2, ChurnedHeun, Euler, Heun

__all__ = [
    "DDIM",
    "DPM2",
    "Ancestral",
    "BoundDenoise",
    "ChurnedHeun",
    "Consistency",
    "DDIMInversion",
    "DPMSolverPP",
    "DPMSolverPPSDE",
    "Euler",
    "GradientEstimation",
    "Grid",
    "GridSampler",
    "Heun",
    "Sampler",
    "SamplerStep",
    "StepNoise",
    "UniPC",
    "grid_of",
    "run",
]
