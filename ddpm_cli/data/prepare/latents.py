"""A prepared set of images as latents, encoded once: what the model trains on."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm_cli.data.prepare.cache import Blocks, prepare
from ddpm_cli.data.store import Store, fingerprint
from ddpm_cli.errors import UserError
from ddpm_cli.media.base import Medium

_AT_ONCE = 256  # images between two looks at the progress bar; the autoencoder takes them in smaller parts


def encoded(
    store: Store,
    medium: Medium,
    cache_dir: Path,
    *,
    autoencoder: Mapping[str, Any],
    dtype: str,
    mirrored: bool,
    device: torch.device,
) -> Store:
    """The set's images as the items of `medium`, prepared into `cache_dir`.

    autoencoder: what tells the encoding from others, as plain values. dtype: float16 or float32. mirrored: behind all
    images come all their mirror images, encoded too, since mirrored latents are not the latents of a mirrored image;
    each of the two is then seen half as often as an image alone would be, as with a mirror image at random. The
    fingerprint is of what the latents are made from: their last bits are another machine's own.
    """
    key = {"set": "latents", "data": store.fingerprint, "dtype": dtype, "mirrored": mirrored, **autoencoder}

    def fill() -> Blocks:
        labels = None if store.labels is None else store.labels.numpy()
        for flip in (False, True) if mirrored else (False,):
            for start in range(0, len(store), _AT_ONCE):
                rows = slice(start, start + _AT_ONCE)
                files = store.to_file(store.items[rows]).to(device)
                latents = medium.to_model(files.flip(-1) if flip else files).cpu().to(getattr(torch, dtype))
                if not bool(latents.isfinite().all()):
                    raise UserError(
                        f"representation.dtype={dtype}: latents of {store.name} are beyond it or not finite; "
                        "choose representation.dtype=float32, or another autoencoder"
                    )
                yield latents.numpy(), None if labels is None else labels[rows]

    made = prepare(
        cache_dir,
        key,
        name=f"{store.name}-latents",
        num_items=len(store) * (2 if mirrored else 1),
        item_shape=medium.item_shape,
        dtype=np.dtype(dtype),
        class_names=store.class_names,
        fill=fill,
        other=medium,
    )
    return replace(made, fingerprint=fingerprint(key))
