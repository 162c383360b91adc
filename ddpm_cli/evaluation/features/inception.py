"""The Inception network of FID (Heusel et al. 2017), with the weights that torch-fidelity and pytorch-fid publish."""

import logging
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_cli.data.prepare.download import bring
from ddpm_cli.data.store import Store
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.evaluation.features.base import Extracted, NetworkFeatures, are_pictures, check_images, rgb
from ddpm_cli.evaluation.features.classifier import classifier
from ddpm_cli.system.files import sha256_of

log = logging.getLogger("ddpm_cli")

FILE = "weights-inception-2015-12-05-6726825d.pth"
_SHA256 = "6726825d"  # the first digits, which its name holds
_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
_SIZE, _WIDTH, _CLASSES = 299, 2048, 1008


def inception(*, weights: str | None, download: bool, store: Store, device: torch.device) -> NetworkFeatures:
    """2,048 features (pool3) and the probabilities that torch-fidelity takes (logits without the bias).

    weights: the file; null: where torch keeps what it downloads (TORCH_HOME), which torch-fidelity uses too.
    """
    check_images(store, "inception")
    path = _found(weights, download)
    network = _loaded(path).to(device)
    weight = network.get_parameter("fc.weight")
    network.fc = nn.Identity()

    def extract(images: Tensor) -> Extracted:
        features = network(resized(rgb(images).float(), _SIZE).sub(128).div(128))
        return Extracted(features, (features @ weight.T).softmax(1))

    resize = f"bilinear as TensorFlow 1, to {_SIZE}"
    return NetworkFeatures("inception", sha256_of(path), resize, _WIDTH, _CLASSES, device, extract)


def auto(
    *, weights: str | None, num_steps: int, store: Store, device: torch.device, cache_dir: Path
) -> NetworkFeatures:
    """Inception where its weights lie on this machine, else the data set's own classifier, as for all sounds."""
    if are_pictures(store) and (weights is not None or _default().is_file()):
        return inception(weights=weights, download=False, store=store, device=device)
    if are_pictures(store):
        log.info("features=auto is classifier: %s is not there (features=inception downloads it)", _default())
    return classifier(num_steps=num_steps, store=store, device=device, cache_dir=cache_dir)


def resized(x: Tensor, size: int) -> Tensor:
    """(B, C, H, W) -> (B, C, size, size), bilinear as TensorFlow 1 had it: pixel i is taken from i * old / new, and
    nothing is smoothed before."""
    for dim in (-2, -1):
        old = x.shape[dim]
        place = torch.arange(size, dtype=torch.float32, device=x.device) * (old / size)
        low = place.long()
        share = (place - low).view(-1, 1) if dim == -2 else place - low
        a, b = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp_max(old - 1))
        x = a + (b - a) * share
    return x


def _default() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", FILE)


def _found(weights: str | None, download: bool) -> Path:
    path = _default() if weights is None else Path(weights)
    if path.is_file():
        return path
    if weights is not None:
        raise UserError(f"features.weights={weights}: no such file; name {FILE}, or choose features=classifier")
    remedy = f"put {FILE} there, set features.weights=PATH, or choose features=classifier"
    if not download:
        raise UserError(f"features=inception: {path} is not there; {remedy}, or set features.download=true")
    try:
        bring(path, _URL, _SHA256)
    except WorldError as error:
        raise WorldError(f"features=inception: {path} could not be downloaded ({error}); {remedy}") from error
    return path


def _loaded(path: Path) -> nn.Module:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network = _network()
        network.load_state_dict(state)
    except Exception as error:  # what torch raises for a file of another kind has no common type
        raise UserError(
            f"features.weights: {path} does not hold FID's Inception ({type(error).__name__}); take {FILE}"
        ) from error
    return network.eval().requires_grad_(False)


def _network() -> nn.Module:
    """torchvision's Inception v3, with the pooling that FID's has: averages leave out the padding, and the last block
    takes the maximum."""
    from torchvision.models import Inception3

    with redirect_stdout(sys.stderr), open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        network = Inception3(num_classes=_CLASSES, aux_logits=False, init_weights=False)
    for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b"):
        network.get_submodule(f"Mixed_{name}.branch_pool").register_forward_pre_hook(_without_padding)
    block, taken = network.Mixed_7c, []
    block.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    block.branch_pool.register_forward_pre_hook(lambda _, args: (F.max_pool2d(taken.pop(), 3, 1, 1),))
    return network


def _without_padding(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    """3 x 3 averages that counted zeros outside, so that they count only what is inside."""
    ones = args[0].new_ones(1, 1, *args[0].shape[-2:])
    return (args[0] / F.avg_pool2d(ones, 3, 1, 1),)
