"""How far samplers end from the truth, by evaluations of the network, for every spacing.

    scripts/run python scripts/measure_samplers.py [--ckpt RUN...] [--png docs/pictures/sampler_errors.png]

On an exact mixture of three Gaussians, whose denoiser is known: the Wasserstein distance (W1) between the mixture and
where 4,001 evenly spread quantiles of the noise end. On a checkpoint: the root mean square distance, in the model's
range, to where the same noise ends on the same ODE in 1,000 steps. Prints the tables of docs/samplers.md; --png draws
them (matplotlib), of checkpoints the first.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ddpm_cli.build.load import load_trained
from ddpm_cli.build.model import item_shape
from ddpm_cli.diffusion import samplers, schedule
from ddpm_cli.diffusion.denoiser import BoundDenoise, Denoised
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule
from ddpm_cli.diffusion.samplers import GridSampler
from ddpm_cli.diffusion.variance import FixedSmall

WEIGHTS, MEANS, STDS = (0.3, 0.5, 0.2), (-0.8, 0.2, 0.9), (0.05, 0.1, 0.2)
POINTS = 4001
SPACINGS = ("trailing", "leading", "linspace", "karras", "log_snr", "log_snr_by_steps")
SCHEDULES = {
    "linear": schedule.linear(),
    "cosine": schedule.cosine(),
    "edm": schedule.edm(),
    "rectified_flow": schedule.rectified_flow(),
    "laplace": schedule.laplace(),
}
Make = Callable[..., GridSampler]
Measure = Callable[[GridSampler, NoiseSchedule], tuple[float, int]]
ODES: dict[str, Make] = {
    "ddim": samplers.DDIM,
    "gradient": samplers.GradientEstimation,
    "dpmpp": samplers.DPMSolverPP,
    "dpmpp order=3": lambda *a: samplers.DPMSolverPP(*a, order=3),
    "unipc": samplers.UniPC,
    "unipc order=3": lambda *a: samplers.UniPC(*a, order=3),
    "heun": samplers.Heun,
    "heun correct=always": lambda *a: samplers.Heun(*a, correct="always"),
    "dpm2": samplers.DPM2,
    "dpm2 correct=always": lambda *a: samplers.DPM2(*a, correct="always"),
}
NOISY: dict[str, Make] = {
    "ancestral": samplers.Ancestral,
    "dpmpp_sde": samplers.DPMSolverPPSDE,
    "dpmpp_sde order=3": lambda *a: samplers.DPMSolverPPSDE(*a, order=3),
    "edm": samplers.ChurnedHeun,
}


def counted(denoise: BoundDenoise) -> tuple[BoundDenoise, Callable[[], int]]:
    calls = 0

    def counting(x: Tensor, t: Tensor) -> Denoised:
        nonlocal calls
        calls += 1
        return denoise(x, t)

    return counting, lambda: calls


# The mixture


def mixture(noise_schedule: NoiseSchedule) -> BoundDenoise:
    """E[x_0 | x_t] of the mixture."""

    def denoise(x: Tensor, t: Tensor) -> Denoised:
        level = noise_schedule.level(t)
        logs, estimates = [], []
        for weight, mean, std in zip(WEIGHTS, MEANS, STDS, strict=True):
            variance, off = level.alpha**2 * std**2 + level.sigma**2, x - level.alpha * mean
            logs.append(math.log(weight) - 0.5 * (variance.log() + off**2 / variance))
            estimates.append(mean + level.alpha * std**2 / variance * off)
        return Denoised((torch.stack(logs).softmax(0) * torch.stack(estimates)).sum(0))

    return denoise


def quantiles() -> tuple[Tensor, Tensor]:
    """Evenly spread ones of the standard normal distribution and of the mixture (by bisection)."""
    u = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    low, high = torch.full_like(u, -3.0), torch.full_like(u, 3.0)
    for _ in range(60):
        middle, below = (low + high) / 2, torch.zeros_like(u)
        for weight, mean, std in zip(WEIGHTS, MEANS, STDS, strict=True):
            below += weight * torch.special.ndtr((middle - mean) / std)
        low, high = torch.where(below < u, middle, low), torch.where(below < u, high, middle)
    return torch.special.ndtri(u), low


def draw(i: int) -> Tensor:
    return torch.randn(POINTS, generator=torch.Generator().manual_seed(i + 7), dtype=torch.float64)


def off_mixture(sampler: GridSampler, noise_schedule: NoiseSchedule) -> tuple[float, int]:
    """W1, and the evaluations it took."""
    normal, wanted = quantiles()
    denoise, calls = counted(mixture(noise_schedule))
    end = samplers.run(sampler(denoise, noise_schedule.prior(normal), noise_schedule, FixedSmall(), draw))
    return float((end.sort().values - wanted).abs().mean()), calls()


def by_spacing(made: dict[str, Make], steps: list[int], on: dict[str, tuple[NoiseSchedule, Measure]]) -> None:
    """Two tables a sampler: rows are spacings, its own in bold; and how far each is from the best, over all columns."""
    columns = [(name, n) for name in on for n in steps]
    for name, make in made.items():
        errors: dict[str, list[float]] = {}
        heads = [f"{each} {n}" for each, n in columns]
        print(f"\n{name}\n\n| spacing | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
        for spacing in SPACINGS:
            cells = []
            for each, n in columns:
                noise_schedule, measure = on[each]
                error, _ = measure(make(n, spacing), noise_schedule)
                errors.setdefault(spacing, []).append(error)
                cells.append(f"**{error:.3f}**" if make().spacing_on(noise_schedule) == spacing else f"{error:.3f}")
            print(f"| {spacing} | {' | '.join(cells)} |")
        print(f"\ntimes the error of the best spacing, geometric mean: {from_best(errors)}")


def from_best(errors: dict[str, list[float]]) -> str:
    """errors: of each spacing in each column -> how many times the least of a column each has, the nearest first."""
    best = [max(min(column), 1e-6) for column in zip(*errors.values(), strict=True)]
    logs = {name: [math.log(max(e, 1e-6) / b) for e, b in zip(row, best, strict=True)] for name, row in errors.items()}
    means = {name: math.exp(sum(row) / len(row)) for name, row in logs.items()}
    return ", ".join(f"{name} {mean:.2f}" for name, mean in sorted(means.items(), key=lambda item: item[1]))


# A trained network


class OfCheckpoint:
    """The distance of a walk of a checkpoint's own network from the end of its ODE."""

    def __init__(self, ckpt: Path, count: int) -> None:
        trained = load_trained(ckpt)
        self.denoiser, self.schedule = trained.denoiser, trained.denoiser.schedule
        network = self.denoiser.network
        self.noise = torch.randn(count, *item_shape(trained.config), generator=torch.Generator().manual_seed(0))
        self.cond = None
        if network.class_conditional:
            self.cond = {"labels": torch.arange(count) % network.num_classes}
        self.end, _ = self.walked(samplers.Heun(500, "log_snr"))

    @torch.inference_mode()
    def walked(self, sampler: GridSampler) -> tuple[Tensor, int]:
        denoise, calls = counted(lambda x, t: self.denoiser(x, t, self.cond))
        x_T = self.schedule.prior(self.noise)
        return samplers.run(sampler(denoise, x_T, self.schedule, FixedSmall(), lambda i: x_T)), calls()

    def off(self, sampler: GridSampler, noise_schedule: NoiseSchedule) -> tuple[float, int]:
        end, calls = self.walked(sampler)
        return float((end - self.end).square().mean().sqrt()), calls


def plot(png: Path, panels: dict[str, tuple[NoiseSchedule, Measure]]) -> None:
    """Error over evaluations, each sampler with its own spacing, a panel each."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.4), squeeze=False)
    shown = [name for name in ODES if "always" not in name]
    for axis, (title, (noise_schedule, measure)) in zip(axes[0], panels.items(), strict=True):
        for name in shown:
            points = []
            for n in (3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 32, 50, 64, 100):
                make = ODES[name]
                error, calls = measure(make(n, make().spacing_on(noise_schedule)), noise_schedule)
                points.append((calls, error))
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.2, label=name)
        axis.set(xscale="log", yscale="log", title=title, xlabel="evaluations of the network")
        axis.set_xlim(3, 105)
        axis.grid(alpha=0.3, which="both", linewidth=0.5)
        axis.set_xticks([3, 5, 10, 20, 50, 100], ["3", "5", "10", "20", "50", "100"])
    axes[0][0].set_ylabel("distance from the truth")
    axes[0][-1].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(png, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, nargs="+", default=[], help="runs or checkpoints, to be measured as well")
    parser.add_argument("--num-images", type=int, default=50)
    parser.add_argument("--png", type=Path)
    args = parser.parse_args()
    mixtures: dict[str, tuple[NoiseSchedule, Measure]] = {name: (each, off_mixture) for name, each in SCHEDULES.items()}
    by_spacing(ODES, [5, 10, 20], mixtures)
    by_spacing(NOISY, [20, 50], mixtures)
    panels = {f"mixture, {name}": mixtures[name] for name in ("cosine", "edm")}
    trained = {path.name: OfCheckpoint(path, args.num_images) for path in args.ckpt}
    if trained:
        by_spacing(ODES, [5, 10, 20, 50], {name: (each.schedule, each.off) for name, each in trained.items()})
        first = next(iter(trained.values()))
        panels["a trained network"] = (first.schedule, first.off)
    if args.png is not None:
        plot(args.png, panels)


if __name__ == "__main__":
    main()
