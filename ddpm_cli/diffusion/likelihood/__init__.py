"""How probable a model finds images, in bits per dimension: the variational bound and the likelihood of the
probability-flow ODE. x_0 holds the 256 values of an 8-bit image, in [-1, 1]."""

from ddpm_cli.diffusion.likelihood.bound import (
    Bound,
    BoundEstimate,
    Draw,
    drawn_from,
    estimated_bound,
    strata,
    variational_bound,
)
from ddpm_cli.diffusion.likelihood.ode import (
    OdeLikelihood,
    dequantised,
    ode_likelihood,
    ode_likelihood_by_decoder,
    ode_log_density,
)

__all__ = [
    "Bound",
    "BoundEstimate",
    "Draw",
    "OdeLikelihood",
    "dequantised",
    "drawn_from",
    "estimated_bound",
    "ode_likelihood",
    "ode_likelihood_by_decoder",
    "ode_log_density",
    "strata",
    "variational_bound",
]
