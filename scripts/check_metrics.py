"""What each metric says of real images that are spoilt more and more, beside the reference of all training images.

    scripts/run python scripts/check_metrics.py dataset=mnist dataset.root=data [n=5000] [features=classifier]

prints a table in Markdown, and how long a metric takes. The images are of the test split, n of them.
"""

import logging
import sys
import time

import torch
import yaml

from ddpm_cli.build.trainer import build_data
from ddpm_cli.config.check import configuration
from ddpm_cli.config.groups import config_dir
from ddpm_cli.data.store import Store
from ddpm_cli.evaluation.cache import cache_dir_of
from ddpm_cli.evaluation.features.base import build_features
from ddpm_cli.evaluation.metrics import FEATURE_METRICS, OF_PROBABILITIES, Score, score
from ddpm_cli.evaluation.reference import held_out, reference
from ddpm_cli.system.device import choose_device


def noisy(images: torch.Tensor, level: float) -> torch.Tensor:
    """Gaussian noise of this deviation on the scale of [-1, 1], rounded and clamped to uint8."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + 127.5 * level * noise).round().clamp(0, 255).to(torch.uint8)


def spoilt(test: Store, n: int) -> dict[str, torch.Tensor]:
    """The images of each row of the table."""
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    real = test.items[order[:n]]
    rows = {"real (the floor)": real, "real with noise 0.1": noisy(real, 0.1)}
    if test.labels is not None:
        kept = order[test.labels[order] != test.num_classes - 1][:n]
        rows[f"without class {test.class_names[-1]}"] = test.items[kept]
    noise = noisy(torch.full_like(real, 128), 1.0)
    return {**rows, "real with noise 0.6": noisy(real, 0.6), "noise alone": noise}


def shown(found: Score) -> str:
    return f"{found.value:.4g} [{found.low:.4g}, {found.high:.4g}]"


def main(words: list[str]) -> None:
    own = dict(word.split("=", 1) for word in words if word.startswith(("n=", "features=")))
    n, option = int(own.get("n", 5000)), own.get("features", "classifier")
    cfg = configuration("train", *(word for word in words if not word.startswith(("n=", "features="))))
    with open(f"{config_dir()}/features/{option}.yaml", encoding="utf-8") as file:
        node = yaml.safe_load(file)
    store, cache_dir, other = build_data(cfg), cache_dir_of(cfg["dataset"]), held_out(cfg)
    assert other is not None, "the data set has no test split"
    features = build_features(node, store, choose_device("auto"), [], cache_dir)
    print(features.describe())
    real = reference(store, features, cache_dir, split="train")
    seconds: dict[str, float] = {}
    print(f"| {n} images | FID@{n} | extrapolated | KID | inception score | precision | recall |")
    print("|---|---|---|---|---|---|---|")
    for name, images in spoilt(other[0], n).items():
        extracted, found = features(images), {}
        for metric in FEATURE_METRICS:
            started = time.perf_counter()
            if metric != "accuracy" and (metric not in OF_PROBABILITIES or features.num_classes):
                found |= score(metric, extracted.features, extracted.probabilities, real.features)
            seconds[metric] = time.perf_counter() - started
        infinite = found["fid"].extra["extrapolated"]
        columns = [shown(found["fid"]), "-" if infinite is None else f"{infinite:.4g}", shown(found["kid"])]
        columns += [shown(found[key]) if key in found else "-" for key in ("inception_score", "precision", "recall")]
        print(f"| {name} | {' | '.join(columns)} |", flush=True)
    print("seconds:", {metric: round(value, 1) for metric, value in seconds.items()}, file=sys.stderr)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1:] or ["dataset=mnist"])
