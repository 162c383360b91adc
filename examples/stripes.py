"""A data set of your own: a function from the keywords of its YAML file to a Store.

    PYTHONPATH=examples ddpm-train --config-dir examples/configs dataset=stripes trust=[stripes]

`num_classes`, `channels` and `image_size` must be among the keywords: the network is built by them before this is
called. A set that is read from files would be kept by ddpm_cli.data.prepare.cache.prepare, as in
ddpm_cli/data/image_folder.py.
"""

import torch

from ddpm_cli.data.store import Store, fingerprint

DIRECTIONS = ("across", "down")


def stripes(*, num_images: int, seed: int, channels: int, image_size: int, num_classes: int) -> Store:
    """Stripes of random width and place, across or down: all of an image is a function of the seed and its number."""
    draws = torch.rand(num_images, 2, 1, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(num_images) % num_classes
    waves = torch.sin(torch.arange(image_size) * (0.5 + draws[:, 0]) + 6.28 * draws[:, 1])  # (N, S)
    images = waves[:, None, :, None].expand(-1, channels, -1, image_size)  # (N, C, S, S)
    turned = torch.where(labels.view(-1, 1, 1, 1) == 1, images.mT, images)
    return Store(
        items=turned.float().contiguous(),  # floats lie in [-1, 1], uint8 would be pixels
        labels=labels,
        class_names=DIRECTIONS[:num_classes],
        name="stripes",
        fingerprint=fingerprint({"set": "stripes", "num_images": num_images, "seed": seed, "image_size": image_size}),
    )
