"""Draws what each schedule and weighting emphasises, over the log-SNR: python scripts/plot_choices.py [PNG]

Reads configs/, so that a new option is in the picture at once. Needs matplotlib.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor

from ddpm_cli.build.instantiate import make
from ddpm_cli.config.compose import Composer, plain
from ddpm_cli.config.groups import options_of
from ddpm_cli.diffusion.gaussian import NoiseLevel
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule, variance_preserving
from ddpm_cli.diffusion.timesteps import LogNormal

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
LOG_SNR = torch.linspace(-14, 14, 561, dtype=torch.float64)
DENSEST = 0.3  # of the picture
RECIPES = {  # experiment: schedule, weighting, timesteps
    "ddpm": ("linear", "epsilon", None),
    "improved_ddpm": ("cosine", "epsilon", None),
    "default: cosine, v": ("cosine", "v", None),
    "v_min_snr": ("cosine", "min_snr", None),
    "edm": ("edm", "edm", LogNormal()),
}


def options(group: str) -> dict[str, object]:
    """The objects of a group's options, by name; those that need a file of the user's are left out."""
    with Composer.opened("train") as composer:
        nodes = {name: composer.compose([f"{group}={name}", "dataset.image_size=32"]) for name in options_of(group)}
        plain_nodes = {name: plain(cfg)[group] for name, cfg in nodes.items()}
    return {name: make(group, node, []) for name, node in plain_nodes.items() if "???" not in node.values()}


def visits(schedule: NoiseSchedule, timesteps: LogNormal | None) -> Tensor:
    """How densely training visits each log-SNR; integrates to 1."""
    if timesteps is not None:
        mean, std = -2 * timesteps.mean, 2 * timesteps.std
        return torch.exp(-0.5 * ((LOG_SNR - mean) / std) ** 2) / (std * (2 * torch.pi) ** 0.5)
    rows = schedule.level(torch.arange(1, schedule.num_timesteps + 1)).log_snr
    between = (rows[1:] + rows[:-1]) / 2  # where a step of 1 / T in time is this step in log-SNR
    density = 1 / (schedule.num_timesteps * -rows.diff())
    return torch.from_numpy(np.interp(LOG_SNR, between.flip(0), density.flip(0), left=0.0, right=0.0))


def emphasis(weighting) -> Tensor:
    """The weight of the error of v, whose target has the same size at every level."""
    level: NoiseLevel = variance_preserving(LOG_SNR)
    return weighting(level) / (level.snr + 1)


def main(target: Path) -> None:
    schedules, weightings = options("schedule"), options("weighting")
    weightings.pop("uncertainty")  # learned
    figure, axes = plt.subplots(2, 2, figsize=(14, 10.5), layout="constrained")
    styles = {name: (f"C{i % 10}", "-" if i < 5 else "--") for i, name in enumerate(schedules)}
    for name, schedule in schedules.items():
        colour, line = styles[name]
        t = torch.arange(1, schedule.num_timesteps + 1)
        axes[0, 0].plot(t / len(t), schedule.level(t).log_snr, line, color=colour, label=name)
        density = visits(schedule, None)
        beyond = f" (up to {density.max():.1f})" if density.max() > DENSEST else ""
        axes[0, 1].plot(LOG_SNR, density, line, color=colour, label=name + beyond)
    axes[0, 1].plot(LOG_SNR, visits(schedules["edm"], LogNormal()), ":", color="black", label="timesteps=log_normal")
    for i, (name, weighting) in enumerate(weightings.items()):
        axes[1, 0].plot(LOG_SNR, emphasis(weighting), "-" if i < 4 else "--", color=f"C{i}", label=name)
    for i, (name, (schedule, weighting, timesteps)) in enumerate(RECIPES.items()):
        product = visits(schedules[schedule], timesteps) * emphasis(weightings[weighting])
        axes[1, 1].plot(LOG_SNR, product / product.sum() / (LOG_SNR[1] - LOG_SNR[0]), color=f"C{i}", label=name)
    dress(axes)
    figure.savefig(target, dpi=100)
    print(target)


def dress(axes) -> None:
    axes[0, 0].set(title="schedule: the log-SNR at time t", xlabel="t / T", ylabel="log-SNR", ylim=(-16, 16))
    axes[0, 1].set(title="schedule: how often uniform t visits a log-SNR", ylabel="density", ylim=(0, DENSEST))
    axes[1, 0].set(title="weighting: weight of the error of v", ylabel="weight", yscale="log", ylim=(2e-3, 2e1))
    axes[1, 1].set(title="recipes: share of the loss, were the error of v the same everywhere", ylabel="density")
    for axis in axes.flat[1:]:
        axis.set(xlabel="log-SNR      (noise on the left, image on the right)", xlim=(-14, 14))
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=9, frameon=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "pictures" / "choices.png")
