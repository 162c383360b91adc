"""How probable a model finds images it has not seen, in bits per dimension: by the variational bound and by the
probability-flow ODE.

What is found of image k is a function of (seed, k), in whatever batches; the scores are of all images together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ddpm_cli.build.model import null_label
from ddpm_cli.data.conditions import Conditions
from ddpm_cli.data.store import Store
from ddpm_cli.diffusion import likelihood
from ddpm_cli.diffusion.denoiser import Cond, Denoiser, clipped
from ddpm_cli.diffusion.variance import Variance
from ddpm_cli.errors import WorldError
from ddpm_cli.evaluation.metrics.base import Score, interval, standard_error
from ddpm_cli.seeding import generator

_BOUND, _ODE = 501, 502  # streams of this module
_SHOWN = 8  # ranges of t whose share of the bound is told

Found = dict[str, Tensor]  # of each image, (n, ...) float64 on the CPU


@dataclass(frozen=True)
class Likelihood:
    """What the model gives for the images of `store` (the test split), each with its label.

    num_draws: of noise, for the bound; num_strata: network evaluations a draw. The ODE has one draw of the place in the
    bin and of the trace's probe. tolerance: of its steps; solved with ten times it as well, which bounds the solver's
    error. The bound is that of clipped estimates of x_0, as samplers have them; the ODE, whose flow must be smooth, of
    plain ones.
    """

    denoiser: Denoiser
    variance: Variance
    store: Store
    seed: int
    device: torch.device
    num_draws: int = 2
    num_strata: int = 32
    tolerance: float = 1e-4
    conditions: Conditions | None = None  # of the images of `store`, for a model of such

    def __call__(self, indices: Sequence[int]) -> Found:
        """Of the images with these numbers. The network runs in float32: rounding to 16 bits is no smooth flow."""
        denoiser = self.denoiser
        exact = Denoiser(denoiser.network, denoiser.schedule, denoiser.prediction, denoiser.variance)
        x_0 = self.store.to_model(self.store.items[list(indices)]).to(self.device)
        cond, denoise = self._cond(indices), clipped(exact)
        with torch.no_grad():
            bound = likelihood.estimated_bound(
                lambda x_t, t: denoise(x_t, t, cond), x_0, exact.schedule, self.variance,
                draw=partial(self._noise, indices, x_0.shape[1:]), num_strata=self.num_strata,
                replicates=self.num_draws,
            )  # fmt: skip
        ode = self._by_ode(exact, x_0, cond, indices)
        found = {
            "prior": bound.prior,
            "terms": bound.terms,  # (n, num_draws, strata)
            "ode": ode.total,  # (n,)
            "coarse": ode.coarse,
        }
        return {name: value.double().cpu() for name, value in found.items()}

    def scores(self, found: Mapping[str, Tensor]) -> dict[str, Score]:
        """nll_bound and nll_ode of all images. extra: standard_error of the mean, of the bound draws_error, its part
        that more draws would lessen, and the terms; of the ODE what its solver may be off by."""
        if not all(bool(value.isfinite().all()) for value in found.values()):
            raise WorldError("nll: the likelihood of an image is not finite; are the weights those of a trained model?")
        prior, terms, ode = found["prior"], found["terms"], found["ode"]
        by_range = terms.mean((0, 1))
        each = terms.sum(2)
        draws_error = float((each.var(1) / each.shape[1]).sum().sqrt()) / len(each)
        extra = {"draws_error": draws_error, "prior": float(prior.mean()), "decoder": float(by_range[0])}
        ranges = likelihood.strata(self.denoiser.schedule.num_timesteps, self.num_strata)
        for part in torch.arange(1, len(ranges)).tensor_split(_SHOWN):
            if len(part):
                name = f"t_{ranges[part[0]].start}_to_{ranges[part[-1]].stop - 1}"
                extra[name] = float(by_range[part].sum())
        off = ode - found["coarse"]
        solver = {"solver_error": abs(float(off.mean())), "solver_error_worst": float(off.abs().max())}
        return {
            "nll_bound": _score(prior + terms.sum(2).mean(1), extra),
            "nll_ode": _score(ode, solver),
        }

    def _by_ode(self, denoise: Denoiser, x_0: Tensor, cond: Cond, indices: Sequence[int]) -> likelihood.OdeLikelihood:
        draws = [generator("cpu", self.seed, _ODE, k) for k in indices]
        u, probe = (torch.stack([torch.rand(x_0.shape[1:], generator=g) for g in draws]) for _ in range(2))
        return likelihood.ode_likelihood(
            denoise, x_0, denoise.schedule, u=u.to(x_0), probe=torch.where(probe < 0.5, -1.0, 1.0).to(x_0), cond=cond,
            tolerance=self.tolerance,
        )  # fmt: skip

    def _noise(self, indices: Sequence[int], shape: Sequence[int], number: int) -> tuple[Tensor, Tensor]:
        draws = [generator("cpu", self.seed, _BOUND, k, number) for k in indices]
        u = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in draws])
        noise = torch.stack([torch.randn(tuple(shape), generator=g) for g in draws])
        return u.to(self.device), noise.to(self.device)

    def _cond(self, indices: Sequence[int]) -> Cond:
        """The images' own labels and conditions, for a network that is told of them."""
        null, labels, cond = null_label(self.denoiser.network), self.store.labels, dict[str, Tensor]()
        if null is not None:
            cond["labels"] = torch.full((len(indices),), null) if labels is None else labels[list(indices)]
        if self.conditions is not None:
            cond |= self.conditions.cond(torch.tensor(list(indices)))
        return {key: part.to(self.device) for key, part in cond.items()} or None


def _score(bits: Tensor, extra: Mapping[str, float]) -> Score:
    """bits: (n,), float64."""
    value, error = float(bits.mean()), standard_error(bits)
    low, high = interval(value, error)
    return Score(value, low, high, len(bits), "lower", {"standard_error": error, **extra})
