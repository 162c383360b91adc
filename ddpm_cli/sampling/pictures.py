"""Pictures for people: grids of images, strips of a walk's stages, animations; enlarged so that an 8x8 digit can be
read. Each file is written whole or not at all: a run that goes on takes what is there for done."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ddpm_cli.media.images import save_png, to_image
from ddpm_cli.system.files import replacing

__all__ = ["columns_of", "grid", "save_gif", "save_png", "shown", "strip"]

_MIN_SIDE = 48  # pixels a small image is enlarged to, by a whole factor
_TINY = 16  # up to this side the eye reads an image better smoothed than as a mosaic of squares
_MOST_COLUMNS = 20
_STAGES = 10  # of a walk, in a strip


def grid(items: Tensor, columns: int | None = None, gap: int = 2) -> Image.Image:
    """uint8 (N, C, H, W) side by side, row by row, on a grey ground; about square where `columns` is not given, is more
    than a screen is wide, or would leave the only row short."""
    count, _, height, width = items.shape
    columns = columns if columns and columns <= min(_MOST_COLUMNS, count) else math.ceil(math.sqrt(count))
    factor = max(1, math.ceil(_MIN_SIDE / max(height, width)))
    cell_h, cell_w = height * factor + gap, width * factor + gap
    rows = math.ceil(count / columns)
    smooth = Image.Resampling.BICUBIC if max(height, width) <= _TINY else Image.Resampling.NEAREST
    sheet = Image.new("L" if items.shape[1] == 1 else "RGB", (columns * cell_w + gap, rows * cell_h + gap), "#808080")
    for k, item in enumerate(items):
        picture = to_image(item).resize((width * factor, height * factor), smooth)
        sheet.paste(picture, (gap + k % columns * cell_w, gap + k // columns * cell_h))
    return sheet


def columns_of(count: int, num_classes: int) -> int:
    """Of a sheet whose columns are of one class each: all classes, as often side by side as makes it about square."""
    return num_classes * max(1, round(math.sqrt(count) / num_classes))


def shown(stages: Sequence[Tensor]) -> list[Tensor]:
    """Of a walk's stages at most 10, evenly spread, with the first and the last among them."""
    return [stages[i] for i in torch.linspace(0, len(stages) - 1, min(_STAGES, len(stages))).round().long().tolist()]


def strip(stages: Sequence[Tensor]) -> Image.Image:
    """A row an image, from left to right its stages, each uint8 (B, C, H, W)."""
    return grid(torch.stack(list(stages), 1).flatten(0, 1), columns=len(stages))


def save_gif(frames: list[Image.Image], path: Path) -> Path:
    """A looping animation that rests on its last frame."""
    times = [60] * (len(frames) - 1) + [1500]  # milliseconds
    with replacing(path) as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)
    return path
