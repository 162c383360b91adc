"""The image files an edit starts from: read at the model's size, handed out to the images to be drawn, shown beside
them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.data.decode import DecodeError, decode
from ddpm_cli.data.listing import EXTENSIONS
from ddpm_cli.diffusion.editing import Source
from ddpm_cli.errors import UserError

_MOST_ROWS, _MOST_COLUMNS = 16, 12


@dataclass(frozen=True)
class Gallery:
    """The images of an edit, taken in turn; the mask's and the other end's too."""

    images: Tensor  # (n, C, H, W) uint8
    masks: Tensor | None = None  # (m, 1, H, W) bool, true where to paint
    to: Tensor | None = None  # (p, C, H, W) uint8
    frames: int = 1  # images drawn of each one, side by side in number

    def __len__(self) -> int:
        return max(len(rows) for rows in (self.images, self.masks, self.to) if rows is not None)

    def source_of(self, k: int) -> int:
        """Which of the images image k is made from."""
        return k // self.frames % len(self)

    def rows(self, indices: Sequence[int], device: torch.device) -> Source:
        """What the images numbered `indices` start from, in the model's range."""
        sources = [self.source_of(k) for k in indices]

        def taken(rows: Tensor) -> Tensor:
            return rows[[source % len(rows) for source in sources]].to(device)

        share = torch.tensor([k % self.frames / max(self.frames - 1, 1) for k in indices])
        return Source(
            _to_model(taken(self.images)),
            None if self.masks is None else taken(self.masks),
            None if self.to is None else _to_model(taken(self.to)),
            share.to(device),
        )

    def sheet(self, results: Tensor) -> tuple[Tensor, int]:
        """uint8 (N, C, H, W) in rows of the given number of columns: inputs and the results made from them.

        A row holds the image, what the mask leaves of it, the results, and where an interpolation leads.
        """
        rows = []
        for source in range(min(len(self), _MOST_ROWS)):
            image = self.images[source % len(self.images)]
            row = [image]
            if self.masks is not None:
                row.append(torch.where(self.masks[source % len(self.masks)], torch.full_like(image, 128), image))
            made = [results[k] for k in range(len(results)) if self.source_of(k) == source]
            row += made[:_MOST_COLUMNS]
            row += [self.to[source % len(self.to)]] if self.to is not None else []
            rows.append(row)
        columns = max(len(row) for row in rows)
        blank = torch.full_like(self.images[0], 128)
        return torch.stack([item for row in rows for item in [*row, *[blank] * (columns - len(row))]]), columns


def with_frames(gallery: Gallery, num_images: int, typed_frames: bool) -> Gallery:
    """An interpolation's gallery whose walks num_images fill: shared out among the pairs, unless edit.frames was typed.
    UserError where a walk would end before the image it leads to."""
    if gallery.to is None:
        return gallery
    parts, what = (gallery.frames, "edit.frames") if typed_frames else (len(gallery), "the number of pairs of images")
    if num_images % parts or (not typed_frames and num_images < 2 * parts):
        least = "" if typed_frames else f", and at least {2 * parts}"
        raise UserError(
            f"num_images={num_images} must be a multiple of {what}, {parts}{least}, so that each walk is whole; "
            "or leave it out and set edit.frames"
        )
    return gallery if typed_frames else replace(gallery, frames=num_images // parts)


def load_gallery(node: dict[str, Any], shape: tuple[int, ...]) -> Gallery:
    """The images that an edit's configuration names, at the model's (C, H, W)."""
    masks = None
    if "mask" in node:
        masks = _read(node["mask"], "edit.mask", (1, *shape[1:])) > 127
        if not masks.flatten(1).any(1).all():
            raise UserError(f"edit.mask={node['mask']}: nothing in it is white, so nothing would be made anew")
    to = _read(node["to"], "edit.to", shape) if "to" in node else None
    return Gallery(_read(node["image"], "edit.image", shape), masks, to, node.get("frames", 1))


def _read(spec: str, key: str, shape: tuple[int, ...]) -> Tensor:
    """(n, C, H, W) uint8 of an image file or of a folder's, sorted by name."""
    path = Path(spec).expanduser()
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))
    if not files or not path.exists():
        raise UserError(f"{key}={spec}: {'holds no image files' if path.exists() else 'no such file or folder'}")
    channels, height, width = shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    images = []
    for file in files:
        try:
            square = torch.tensor(decode(file, channels, side))
        except DecodeError as error:
            raise UserError(f"{key}: {file}: {error}") from error
        images.append(square[:, top : top + height, left : left + width])
    return torch.stack(images)


def _to_model(images: Tensor) -> Tensor:
    return images.float().sub_(127.5).mul_(1 / 127.5)
