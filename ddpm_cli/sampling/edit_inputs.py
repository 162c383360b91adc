"""The files an edit starts from: read at the model's size, handed out to what is to be drawn, shown beside
them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.diffusion.editing import Source
from ddpm_cli.errors import UserError
from ddpm_cli.media.base import DecodeError, Medium, files_of

_MOST_ROWS, _MOST_COLUMNS = 16, 12


@dataclass(frozen=True)
class EditInputs:
    """The images or sounds of an edit, taken in turn; the mask's and the other end's too: the longest of the three sets
    the round, and the others begin anew within it."""

    medium: Medium
    items: Tensor  # (n, *file_shape), images or sounds as files hold them
    masks: Tensor | None = None  # (m, 1, ...) bool, true where to make anew
    to: Tensor | None = None  # (p, *file_shape)
    frames: int = 1  # images drawn of each one, side by side in number

    def __len__(self) -> int:
        return max(len(rows) for rows in (self.items, self.masks, self.to) if rows is not None)

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
            self.medium.to_model(taken(self.items)),
            None if self.masks is None else taken(self.masks),
            None if self.to is None else self.medium.to_model(taken(self.to)),
            share.to(device),
        )

    def sheet(self, results: Tensor) -> tuple[Tensor, int]:
        """Pictures, uint8 (N, C, H, W), in rows of the given number of columns: inputs and the results made from them.

        A row holds the input, what the mask leaves of it, the results, and where an interpolation leads.
        """
        rows = []
        for source in range(min(len(self), _MOST_ROWS)):
            item = self.items[source % len(self.items)]
            row = [item]
            if self.masks is not None:
                row.append(self.medium.without(item, self.masks[source % len(self.masks)]))
            row += [results[k] for k in range(len(results)) if self.source_of(k) == source][:_MOST_COLUMNS]
            row += [self.to[source % len(self.to)]] if self.to is not None else []
            rows.append(self.medium.pictures(torch.stack(row)))
        columns = max(len(row) for row in rows)
        empty = torch.full_like(rows[0][:1], 128)
        return torch.cat([torch.cat([row, empty.expand(columns - len(row), -1, -1, -1)]) for row in rows]), columns


def how_many(inputs: EditInputs | None, num_images: int, typed_keys: Sequence[str]) -> tuple[EditInputs | None, int]:
    """How many images are to be drawn, and the inputs with as many frames as that makes.

    An edit makes one image of each input, and an interpolation all its frames, unless num_images was typed. Of an
    interpolation, num_images are shared out among the pairs of images, unless edit.frames was typed too; UserError
    where the way from one image to the other would then break off before its end.
    """
    if inputs is None:
        return None, num_images
    if "num_images" not in typed_keys:
        return inputs, len(inputs) * inputs.frames
    if inputs.to is None:
        return inputs, num_images
    typed = "edit.frames" in typed_keys
    parts, what = (inputs.frames, "edit.frames") if typed else (len(inputs), "the number of pairs of images")
    if num_images % parts or (not typed and num_images < 2 * parts):
        least = "" if typed else f", and at least {2 * parts}"
        raise UserError(
            f"num_images={num_images} must be a multiple of {what}, {parts}{least}, so that each walk is whole; "
            "or leave it out and set edit.frames"
        )
    return inputs if typed else replace(inputs, frames=num_images // parts), num_images


def load_inputs(node: dict[str, Any], medium: Medium) -> EditInputs:
    """What an edit's configuration names, brought to what the model draws. ValueError where it is of another kind."""
    source = node[medium.one]
    if source is None:
        other = "sound" if medium.one == "image" else "image"
        raise UserError(f"edit.{other}: the model draws {medium.many}; name them by edit.{medium.one}=PATH")
    masks = medium.masks(node) if "mask" in node else None
    to = _read(node["to"], "edit.to", medium) if "to" in node else None
    items = _read(source, f"edit.{medium.one}", medium)
    return EditInputs(medium, items, masks, to, node.get("frames", 1))


def _read(spec: str, key: str, medium: Medium) -> Tensor:
    """(n, *file_shape) of a file or of a folder's, sorted by name."""
    items = []
    for file in files_of(spec, key, medium):
        try:
            items.append(medium.read(file))
        except DecodeError as error:
            raise UserError(f"{key}: {file}: {error}") from error
    return torch.stack(items)
