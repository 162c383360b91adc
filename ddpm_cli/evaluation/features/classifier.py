"""The program's own extractor: a small classifier of the data set itself, trained once, offline."""

import logging
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_cli.data.store import Store
from ddpm_cli.evaluation.cache import Arrays, kept
from ddpm_cli.evaluation.features.base import Extracted, NetworkFeatures, sha256_of_arrays
from ddpm_cli.system.progress import progress_bar

log = logging.getLogger("ddpm_cli")

_RECIPE = 1  # raise it when the same data would give other weights
_WIDTH = 64  # features
_HELD_OUT = 10  # one in so many images is not trained on
_BATCH, _LR, _WEIGHT_DECAY = 128, 4e-3, 1e-2  # AdamW, one cycle
_MOST_EPOCHS = 30  # small sets are learned by then
_TURNS = 4  # by 0, 90, 180 and 270 degrees: what is told apart where there are no classes (Gidaris et al. 2018)


def classifier(*, num_steps: int, store: Store, device: torch.device, cache_dir: Path) -> NetworkFeatures:
    """64 features before the last layer of a network that tells the classes of `store` apart; for a set without
    classes, by how many right angles an image is turned. Of sounds it sees log-mel spectrograms.

    The weights are a function of the data and `num_steps`, up to the rounding of the machine that trains them; they are
    kept in `cache_dir`. A tenth of the images is held out, and the accuracy on them stands beside every number.
    """
    key = {"what": "classifier", "recipe": _RECIPE, "data": store.fingerprint, "num_steps": num_steps}
    weights = dict(kept(cache_dir, f"classifier-{store.name}", key, lambda: _trained(store, num_steps, device)))
    digest, accuracy = sha256_of_arrays(weights), float(weights.pop("accuracy"))
    network = _network(store)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    network.to(device).eval()
    by_turns = _by_turns(store)
    task = "turns by right angles" if by_turns else f"{store.num_classes} classes"
    log.info("features=classifier: tells %s of %s apart, %.2f %% right when held out", task, store.name, 100 * accuracy)

    def extract(images: Tensor) -> Extracted:
        features = network[:-1](store.medium.to_classifier(images))
        return Extracted(features, None if by_turns else network[-1](features).softmax(1))

    told = {"trained_on": store.name, "task": task, "held_out_accuracy": accuracy, "num_steps": num_steps}
    num_classes = None if by_turns else store.num_classes
    return NetworkFeatures(
        "classifier", digest, store.medium.classifier_input, _WIDTH, num_classes, device, extract, told
    )


def _by_turns(store: Store) -> bool:
    return store.num_classes < 2


def _network(store: Store) -> nn.Sequential:
    """(B, C, H, W) in [-1, 1] -> (B, classes)."""
    channels, *sides = store.medium.to_classifier(store.to_file(store.items[:1])).shape[1:]
    for _ in range(3):
        sides = [(side + 1) // 2 for side in sides]

    def conv(i: int, o: int, stride: int = 1) -> nn.Conv2d:
        return nn.Conv2d(i, o, 3, stride, padding=1)

    return nn.Sequential(
        *(conv(channels, 32), nn.ReLU(), conv(32, 32, 2), nn.BatchNorm2d(32), nn.ReLU()),
        *(conv(32, 64), nn.ReLU(), conv(64, 64, 2), nn.BatchNorm2d(64), nn.ReLU()),
        *(conv(64, 64, 2), nn.ReLU(), nn.Flatten(), nn.Linear(64 * math.prod(sides), _WIDTH), nn.ReLU()),
        nn.Linear(_WIDTH, _TURNS if _by_turns(store) else store.num_classes),
    )


def _trained(store: Store, num_steps: int, device: torch.device) -> Arrays:
    """The weights by name, and `accuracy` on what was held out."""
    held_out = torch.arange(len(store)) % _HELD_OUT == _HELD_OUT - 1
    rows, draw = (~held_out).nonzero()[:, 0], torch.Generator().manual_seed(_RECIPE)
    num_steps = max(1, min(num_steps, _MOST_EPOCHS * len(rows) // _BATCH))
    epochs = -(-num_steps * _BATCH // len(rows))
    order = torch.cat([rows[torch.randperm(len(rows), generator=draw)] for _ in range(epochs)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_RECIPE)
        network = _network(store).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=_WEIGHT_DECAY)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=num_steps)
    log.info("training the classifier of %s (once; %d steps)", store.name, num_steps)
    for some in progress_bar(order[: num_steps * _BATCH].split(_BATCH), desc="classifier", unit="step"):
        x, y = _examples(store, some, torch.randint(_TURNS, (len(some),), generator=draw), device)
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
        rates.step()
    weights = {name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()}
    return weights | {"accuracy": np.float64(_accuracy(network.eval(), store, held_out.nonzero()[:, 0], device))}


@torch.inference_mode()
def _accuracy(network: nn.Module, store: Store, rows: Tensor, device: torch.device) -> float:
    right, count = 0, 0
    for some in rows.split(512):
        for turns in range(_TURNS if _by_turns(store) else 1):
            x, y = _examples(store, some, torch.full((len(some),), turns), device)
            right += int((network(x).argmax(1) == y).sum())
            count += len(y)
    return right / max(count, 1)


def _examples(store: Store, rows: Tensor, turns: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images as the network takes them and what it is to tell of them: their classes, or their turns."""
    x = store.medium.to_classifier(store.to_file(store.items[rows]).to(device))
    if store.labels is not None and not _by_turns(store):
        return x, store.labels[rows].to(device)
    turned = [image.rot90(int(turn), (-2, -1)) for image, turn in zip(x, turns, strict=True)]
    return torch.stack(turned), turns.to(device)
