"""Checks on trained digits models what the papers claim. Prints figures; nothing is written but samples.

    python scripts/check_digits.py bound CKPT... [root=DIR]     bits/dim of the test split: every variance, and the ODE
    python scripts/check_digits.py full CKPT                    the estimated bound beside the full sum over t
    python scripts/check_digits.py importance CKPT              variance of the bound's gradient by distribution of t
    python scripts/check_digits.py classes CKPT...              share of drawn images that are read as their label
    python scripts/check_digits.py samples FOLDER...            the same of digits of ddpm-sample, and how diverse
    python scripts/check_digits.py conditions CKPT...           the same of one image a condition of the test split

The checkpoints: ddpm-train run_dir=default; the same with variance=learned_range loss=hybrid, with experiment=...;
`bound` compares the analytic variance where ddpm-analytic has measured it; `bound`, `classes` and `conditions` take
checkpoints of any data set, and root=DIR names a folder of images to judge instead of the test split of the
checkpoint's own data.
"""

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.build.load import load_trained
from ddpm_cli.build.model import build_sampler, item_shape
from ddpm_cli.build.trainer import build_data
from ddpm_cli.data.digits import digits
from ddpm_cli.diffusion import likelihood, losses, schedule, timesteps, variance, weighting
from ddpm_cli.diffusion.denoiser import Denoiser, clipped
from ddpm_cli.run_dir import checkpoint
from ddpm_cli.sampling.conditions import held_out
from ddpm_cli.sampling.generate import ImageNoise, walk

COUNT = 299  # images: all of the test split of digits
T_IMPORTANCE, BATCH, REPEATS = 100, 128, 60


def images(split: str) -> tuple[Tensor, Tensor]:
    store = digits(split=split, channels=1, image_size=8, num_classes=10)
    return store.to_model(store.items), store.labels


def split_of(config: dict[str, Any], split: str, *, most: int, root: str | None = None) -> tuple[Tensor, Tensor | None]:
    """At most so many images of a split of a checkpoint's data set, or of the folder named, chosen at random."""
    dataset = dict(config["dataset"])
    if "split" in dataset:
        dataset["split"] = split
    if root:
        dataset["root"] = root
    store = build_data({**config, "dataset": dataset})
    order = torch.randperm(len(store), generator=torch.Generator().manual_seed(0))[:most].sort().values
    labels = None if store.labels is None or dataset["num_classes"] is None else store.labels[order]
    return store.to_model(store.items[order]), labels


def mean_and_error(x: Tensor) -> str:
    return f"{float(x.mean()):.4f} +- {float(x.std()) / len(x) ** 0.5:.4f}"


def check_bound(words: list[str]) -> None:
    """Bits/dim of the same test images and noise under each variance, and what each differs from fixed_small by."""
    root = next((word.removeprefix("root=") for word in words if word.startswith("root=")), None)
    for path in (word for word in words if not word.startswith("root=")):
        trained, content = load_trained(path), checkpoint.load(path)
        x_0, labels = split_of(trained.config, "test", most=COUNT, root=root)
        cond = None if labels is None else {"labels": labels}
        denoise = partial(clipped(trained.denoiser), cond=cond)
        sigmas = {"fixed_small": variance.FixedSmall(), "fixed_large": variance.FixedLarge()}
        if "analytic" in content:
            sigmas["analytic"] = variance.Analytic(content["analytic"]["ema"])
        if trained.denoiser.variance.learned:
            sigmas["its own"] = trained.denoiser.variance
        print(path)
        first: Tensor | None = None
        for name, sigma in sigmas.items():
            started, draw = time.time(), likelihood.drawn_from(torch.Generator().manual_seed(0), x_0)
            with torch.no_grad():
                found = likelihood.estimated_bound(denoise, x_0, trained.denoiser.schedule, sigma, draw=draw)
            first = found.total if first is None else first
            print(
                f"  bound, {name:12} {found.mean:.4f} +- {found.standard_error:.4f}  "
                f"(less fixed_small, by image: {mean_and_error(found.total - first)}; {time.time() - started:.0f} s)"
            )
        few = None if labels is None else {"labels": labels[:100]}
        few_x, seeded = x_0[:100], torch.Generator().manual_seed(1)
        u, coin, noise = torch.rand(few_x.shape, generator=seeded), *torch.randn(2, *few_x.shape, generator=seeded)
        same = {"probe": torch.where(coin < 0, -1.0, 1.0), "cond": few, "tolerance": 1e-4}
        plain, levels = trained.denoiser, trained.denoiser.schedule  # a clipped one is no smooth flow
        for name, ode in {
            "uniform": partial(likelihood.ode_likelihood, u=u),
            "decoder": partial(likelihood.ode_likelihood_by_decoder, noise=noise),
        }.items():
            started = time.time()
            solved = ode(plain, few_x, levels, **same)
            found, off = mean_and_error(solved.total - first[:100]), (solved.total - solved.coarse).abs()
            print(
                f"  ODE, {name:14} {float(solved.total.mean()):.4f} (100 images; less fixed_small {found}; solver "
                f"off by {float(off.mean()):.1g}, {float(off.max()):.1g} at worst; {time.time() - started:.0f} s)"
            )


def check_full(path: str) -> None:
    """The stratified estimate beside the full sum, on the same 40 images."""
    x_0, labels = (part[:40] for part in images("test"))
    denoiser = load_trained(path).denoiser
    denoise, draw = partial(clipped(denoiser), cond={"labels": labels}), torch.Generator().manual_seed(2)
    sigma = variance.FixedSmall()
    with torch.no_grad():
        found = likelihood.estimated_bound(
            denoise, x_0, denoiser.schedule, sigma, draw=likelihood.drawn_from(torch.Generator().manual_seed(0), x_0)
        )
        full = likelihood.variational_bound(
            denoise, x_0, denoiser.schedule, sigma, lambda t: torch.randn(x_0.shape, generator=draw)
        )
    print(f"  full sum {float(full.total.mean()):.4f}, estimate {found.mean:.4f} +- {found.standard_error:.4f}")


def check_importance(path: str) -> None:
    """Var of the bound's gradient, sum over parameters, at a trained model whose times are thinned to T = 100."""
    trained = load_trained(path).denoiser
    thinned = schedule.rescaled_time(schedule.cosine(T_IMPORTANCE))
    denoiser = Denoiser(trained.network.requires_grad_(True), thinned, trained.prediction, variance.FixedSmall())
    loss, (x, labels) = losses.VariationalBound(weighting.V()), images("train")
    learned = timesteps.LossSecondMoment(T_IMPORTANCE)
    parameters, draw = list(denoiser.network.parameters()), torch.Generator().manual_seed(0)

    def one(distribution) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.randint(len(x), (BATCH,), generator=draw)
        t, importance = distribution(torch.rand(BATCH, generator=draw), thinned)
        noise = torch.randn(BATCH, *x.shape[1:], generator=draw)
        total = loss(denoiser, x[rows], {"labels": labels[rows]}, t, noise).total
        gradient = torch.autograd.grad((importance * total).mean(), parameters)
        return torch.cat([g.flatten() for g in gradient]), t, total.detach()

    with torch.no_grad():  # ten losses of each t
        for t in torch.arange(1, T_IMPORTANCE + 1).repeat(10).split(250):
            rows = torch.randint(len(x), (len(t),), generator=draw)
            noise = torch.randn(len(t), *x.shape[1:], generator=draw)
            learned.observe(t, loss(denoiser, x[rows], {"labels": labels[rows]}, t, noise).total)
    for name, distribution in {
        "uniform": timesteps.Uniform(),
        "stratified": timesteps.Stratified(),
        "loss_second_moment": learned,
    }.items():
        gradients = torch.stack([one(distribution)[0] for _ in range(REPEATS)])
        spread, size = float(gradients.var(0).sum()), float(gradients.mean(0).norm())
        print(f"  {name:20} variance {spread:.4g}, norm of the mean {size:.4g}")


def judge_of(config: dict[str, Any]):
    """A support vector machine, trained on at most 10,000 real images of a checkpoint's data set."""
    from sklearn.svm import SVC

    (x, y), (x_test, y_test) = (split_of(config, part, most=10_000) for part in ("train", "test"))
    if y is None or y_test is None:
        raise SystemExit("classes needs a data set with labels")
    judge = SVC(gamma="scale", C=10).fit(x.flatten(1), y)
    print(f"  real images of the test split: {judge.score(x_test.flatten(1), y_test):.3f}")
    return judge


def check_classes(paths: list[str]) -> None:
    """A support vector machine, trained on the real images, judges 1,000 drawn with their labels."""
    judges: dict[str, Any] = {}
    for path in paths:
        trained = load_trained(path)
        name = str(trained.config["dataset"]["_target_"])
        if name not in judges:
            judges[name] = judge_of(trained.config)
        sampler, classes = build_sampler(trained.config, trained.denoiser), trained.config["dataset"]["num_classes"]
        labels = torch.arange(1000) % classes
        with torch.inference_mode():
            last = torch.cat(
                [drawn(trained, sampler, part, labels[part.start : part.stop]) for part in parts_of(1000, 250)]
            )
        print(f"  {path}: {judges[name].score(last.clamp(-1, 1).flatten(1), labels):.3f} ({sampler})")


def check_samples(folders: list[str]) -> None:
    """Of folders of ddpm-sample: the share of digits that the judge reads as their label; the mean distance between two
    images of a class; and the Frechet distance of the pixels' Gaussians to the training images'."""
    x, y = images("train")
    knobs = {"split": "train", "channels": 1, "image_size": 8, "num_classes": 10}
    judge = judge_of({"dataset": {"_target_": "ddpm_cli.data.digits.digits", **knobs}})
    print(f"  {'real':40} diversity {diversity(x, y):.2f}")
    for folder in folders:
        content = np.load(Path(folder) / "samples.npz")
        drawn_x = torch.from_numpy(content["images"]).permute(0, 3, 1, 2).float() / 127.5 - 1
        labels = torch.from_numpy(content["labels"])
        right = judge.score(drawn_x.flatten(1), labels)
        print(f"  {folder:40} accuracy {right:.3f}, diversity {diversity(drawn_x, labels):.2f}, ", end="")
        print(f"Frechet distance {frechet(drawn_x.flatten(1).double(), x.flatten(1).double()):.2f}")


def diversity(x: Tensor, labels: Tensor) -> float:
    """The mean distance between two images of a class, over classes; x: (N, C, H, W) in [-1, 1]."""
    return float(torch.stack([torch.pdist(x[labels == c].flatten(1)).mean() for c in labels.unique()]).mean())


def frechet(a: Tensor, b: Tensor) -> float:
    """Between the Gaussians of the rows' mean and covariance."""
    (m_a, c_a), (m_b, c_b) = ((rows.mean(0), rows.T.cov()) for rows in (a, b))
    root = torch.linalg.eigvals(c_a @ c_b).real.clamp(min=0).sqrt().sum()
    return float((m_a - m_b).square().sum() + c_a.trace() + c_b.trace() - 2 * root)


def check_conditions(paths: list[str]) -> None:
    """The same of a model with a condition: an image for that of each of the test split, judged by its true class; and
    of what the condition alone would be read as, scaled up."""
    for path in paths:
        trained = load_trained(path)
        data = held_out(trained.config)
        if data is None or data.store.labels is None:
            raise SystemExit(f"{path} has no condition, or no classes")
        judge, sampler = judge_of(trained.config), build_sampler(trained.config, trained.denoiser)
        count = len(data.store)
        with torch.inference_mode():
            rows = [torch.tensor(part) for part in parts_of(count, 250)]
            told = [(data.store.labels[some], data.cond(some)) for some in rows]
            images = [drawn(trained, sampler, p, *of) for p, of in zip(parts_of(count, 250), told, strict=True)]
        last, real = torch.cat(images).clamp(-1, 1), data.store.to_model(data.store.items)
        share, apart = judge.score(last.flatten(1), data.store.labels), float((last - real).abs().mean()) / 2
        print(f"  {path}: {share:.3f} of {count}; pixels differ by {apart:.3f} of the range")
        shown = data.cond(torch.arange(count)).get("condition")
        if shown is not None and shown.shape == real.shape:
            print(f"  of the condition itself: {judge.score(shown.flatten(1), data.store.labels):.3f}")


def parts_of(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def drawn(trained, sampler, indices: range, labels: Tensor, told: dict[str, Tensor] | None = None) -> Tensor:
    steps = walk(
        clipped(trained.denoiser),
        sampler,
        trained.denoiser.schedule,
        trained.variance,
        ImageNoise(0, indices, item_shape(trained.config), torch.device("cpu")),
        {"labels": labels, **(told or {})},
    )
    for step in steps:
        last = step.x
    return last


if __name__ == "__main__":
    command, *names = sys.argv[1:] or [""]
    checks = {"bound": check_bound, "classes": check_classes}
    checks |= {"samples": check_samples, "conditions": check_conditions}
    singles = {"importance": check_importance, "full": check_full}
    if not names or command not in {**checks, **singles}:
        raise SystemExit(__doc__)
    checks[command](names) if command in checks else singles[command](names[0])
