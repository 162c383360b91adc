"""Any network in a TorchScript file, as NVIDIA publishes its Inception."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.data.store import Store
from ddpm_cli.errors import UserError
from ddpm_cli.evaluation.features.base import Extracted, NetworkFeatures, check_images
from ddpm_cli.system.files import sha256_of

_RANGES = {"uint8": "0..255", "unit": "0..1", "signed": "-1..1"}


def torchscript(
    *,
    path: str,
    input: str,
    image_size: int | None,
    channels: int | None,
    store: Store,
    device: torch.device,
) -> NetworkFeatures:
    """What the file makes of images (B, C, H, W): (B, D) features, without probabilities.

    input: what it takes: uint8, or numbers in 0..1 (unit) or -1..1 (signed). image_size: its own size, null: that of
    the images. channels: null: those of the images. A forward with an argument `return_features` gets True.
    """
    check_images(store, "torchscript")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*deprecated", FutureWarning)  # until torch loads such files no more
            network = torch.jit.load(path, map_location=device).eval()
        names = [argument.name for argument in network.forward.schema.arguments]
    except (RuntimeError, ValueError, OSError, AttributeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"features.path={path} is no TorchScript file that can be read: {first}") from error
    extra = {"return_features": True} if "return_features" in names else {}

    def extract(images: Tensor) -> Extracted:
        return Extracted(network(_prepared(images, input, image_size, channels), **extra), None)

    shape = _shape_of(extract, store, device, path)
    resize = "none" if image_size is None else f"bilinear, antialiased, to {image_size}"
    told = {"file": Path(path).name, "range": _RANGES[input]}
    return NetworkFeatures("torchscript", sha256_of(Path(path)), resize, shape[1], None, device, extract, told)


def _prepared(images: Tensor, input: str, image_size: int | None, channels: int | None) -> Tensor:
    x = images
    if channels is not None and channels != x.shape[1]:
        x = x.expand(-1, channels, -1, -1) if x.shape[1] == 1 else x.float().mean(1, keepdim=True).round().to(x.dtype)
    if image_size is not None and x.shape[-2:] != (image_size, image_size):
        x = F.interpolate(x.float(), (image_size, image_size), mode="bilinear", antialias=True)
        x = x.round().clamp(0, 255).to(torch.uint8) if input == "uint8" else x
    if input == "uint8":
        return x
    return x.float() / 255 if input == "unit" else x.float() / 127.5 - 1


def _shape_of(extract: Callable[[Tensor], Extracted], store: Store, device: torch.device, path: str) -> tuple[int, ...]:
    """The shape of what comes out for three images; UserError unless it is (3, D) of finite numbers."""
    try:
        with torch.inference_mode():
            found = extract(store.items[:1].expand(3, *store.item_shape).to(device)).features
    except (torch.jit.Error, RuntimeError, TypeError) as error:
        last = str(error).strip().splitlines()[-1]
        raise UserError(
            f"features.path={path} does not take images of this form ({last[:200]})\n"
            "see to features.input (uint8, unit, signed), features.image_size and features.channels"
        ) from error
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 3 or not found.is_floating_point():
        got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"features.path={path} must give float features (B, D); of 3 images it gives {got}")
    return tuple(found.shape)
