"""Discs, squares, triangles and crosses drawn by a formula: no files, any size, a function of (seed, split, index)."""

import numpy as np
import torch

from ddpm_cli.data.checks import check_channels, check_in_memory, check_split
from ddpm_cli.data.prepare.pixels import pieces
from ddpm_cli.data.store import Store, fingerprint
from ddpm_cli.errors import UserError
from ddpm_cli.seeding import mix, uniform

KINDS = ("disc", "square", "triangle", "cross")
_DRAWS = 16  # random numbers set aside for an image


def shapes(*, num_images: int, seed: int, split: str, channels: int, image_size: int, num_classes: int | None) -> Store:
    """One shape an image, bright on dark, of random place, size, angle and colours; image i is of kind i % num_classes.

    num_classes 0: all kinds, without labels. Image i does not depend on num_images.
    """
    check_split(split, ("train", "test"))
    check_channels(channels)
    num_classes = len(KINDS) if num_classes is None else num_classes
    if not 0 <= num_classes <= len(KINDS):
        raise UserError(f"dataset.num_classes must be a whole number in 0..{len(KINDS)}, got {num_classes}")
    check_in_memory(num_images, channels * image_size**2 + 16)  # 16 for its index and its label
    stream = mix(seed, ("train", "test").index(split))
    kinds = np.arange(num_images) % (num_classes or len(KINDS))
    images = np.empty((num_images, channels, image_size, image_size), np.uint8)
    for rows in pieces(num_images, image_size):
        positions = np.arange(rows.start, rows.stop)[:, None] * _DRAWS + np.arange(_DRAWS)
        images[rows] = _draw(kinds[rows], uniform(stream, positions), channels, image_size)
    key = {"set": "shapes", "num_images": num_images, "seed": seed, "split": split, "num_classes": num_classes}
    return Store(
        items=torch.from_numpy(images),
        labels=torch.from_numpy(kinds.astype(np.int64)) if num_classes else None,
        class_names=KINDS[:num_classes],
        name=f"shapes-{split}",
        fingerprint=fingerprint({**key, "channels": channels, "image_size": image_size}),
    )


def _draw(kinds: np.ndarray, random: np.ndarray, channels: int, image_size: int) -> np.ndarray:
    """kinds (B,), random (B, _DRAWS) in [0, 1) -> (B, channels, S, S) uint8."""
    radius = 0.3 + 0.3 * random[:, 0]  # the image is the square [-1, 1]^2
    centre = (2 * random[:, 1:3] - 1) * (0.95 - radius[:, None])  # so that the shape is all inside
    turn = (random[:, 3] - 0.5) * (np.pi / 6)  # within 15 degrees of upright, in radians
    grid = ((np.arange(image_size, dtype=np.float32) + 0.5) * 2 / image_size) - 1
    right = grid[None, None, :] - centre[:, 0, None, None]  # (B, 1, S)
    down = grid[None, :, None] - centre[:, 1, None, None]  # (B, S, 1)
    cos, sin = np.cos(turn)[:, None, None], np.sin(turn)[:, None, None]
    x, y = cos * right + sin * down, cos * down - sin * right  # (B, S, S)
    distance = np.empty_like(x)
    for kind in range(len(KINDS)):
        chosen = kinds == kind
        distance[chosen] = _distance(kind, x[chosen], y[chosen], radius[chosen, None, None])
    cover = np.clip(0.5 - distance * (image_size / 2), 0, 1)[:, None]  # how much of each pixel the shape covers
    back, front = _colours(random[:, 4:10], channels)
    shade = 1 + 0.25 * grid[None, None, ::-1, None] * (1 - cover)  # the ground is lighter at the top
    return np.rint(255 * np.clip(shade * (back + (front - back) * cover), 0, 1)).astype(np.uint8)


def _distance(kind: int, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Signed distance to the edge of a shape at the origin, negative inside (at corners a little too near)."""
    across, along = np.abs(x), np.abs(y)
    if KINDS[kind] == "disc":
        return np.hypot(x, y) - radius
    if KINDS[kind] == "square":
        return np.maximum(across, along) - 0.8 * radius
    if KINDS[kind] == "triangle":  # equilateral, pointing up, its middle a little below the origin
        low = y - 0.25 * radius
        return np.maximum(low, across * np.float32(np.sqrt(3) / 2) - low / 2) - 0.55 * radius
    longer, shorter = np.maximum(across, along), np.minimum(across, along)
    return np.maximum(longer - radius, shorter - 0.3 * radius)


def _colours(random: np.ndarray, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """A dark and a bright colour for each row of (B, 6): two arrays (B, channels, 1, 1) in [0, 1]."""
    dark, bright = 0.08 + 0.22 * random[:, 0], 0.75 + 0.25 * random[:, 1]
    if channels == 1:
        return dark[:, None, None, None], bright[:, None, None, None]
    back = _hue(random[:, 2], 0.3 + 0.4 * random[:, 3], dark)
    front = _hue(random[:, 4], 0.45 + 0.5 * random[:, 5], bright)
    return back, front


def _hue(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """(B,) hue, saturation and value in [0, 1] -> RGB (B, 3, 1, 1)."""
    wheel = (hue[:, None] + np.array([0, 2 / 3, 1 / 3], np.float32)) % 1 * 6
    pure = np.clip(np.abs(wheel - 3) - 1, 0, 1)
    return (value[:, None] * (1 - saturation[:, None] * (1 - pure)))[:, :, None, None].astype(np.float32)
