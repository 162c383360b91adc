"""Pictures for people: grids of images, strips of a walk, films; enlarged so that an 8x8 digit can be read."""

import math
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

_MIN_SIDE = 48  # pixels a small image is enlarged to, by a whole factor
_TINY = 16  # up to this side the eye reads an image better smoothed than as a mosaic of squares


def to_image(item: Tensor) -> Image.Image:
    """An image of its own pixels from uint8 (C, H, W), C = 1 or 3."""
    array = item.cpu().numpy()
    return Image.fromarray(array[0] if array.shape[0] == 1 else np.moveaxis(array, 0, -1))


def grid(items: Tensor, columns: int | None = None, gap: int = 2) -> Image.Image:
    """uint8 (N, C, H, W) side by side, row by row, on a grey ground; about square unless `columns` is given."""
    count, _, height, width = items.shape
    columns = columns or math.ceil(math.sqrt(count))
    factor = max(1, math.ceil(_MIN_SIDE / max(height, width)))
    cell_h, cell_w = height * factor + gap, width * factor + gap
    rows = math.ceil(count / columns)
    smooth = Image.Resampling.BICUBIC if max(height, width) <= _TINY else Image.Resampling.NEAREST
    sheet = Image.new("L" if items.shape[1] == 1 else "RGB", (columns * cell_w + gap, rows * cell_h + gap), "#808080")
    for k, item in enumerate(items):
        picture = to_image(item).resize((width * factor, height * factor), smooth)
        sheet.paste(picture, (gap + k % columns * cell_w, gap + k // columns * cell_h))
    return sheet


def save_png(picture: Image.Image, path: Path) -> Path:
    """Writes the picture whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    picture.save(temporary, format="PNG")
    temporary.replace(path)
    return path


def save_film(frames: list[Image.Image], path: Path, milliseconds: int = 60, hold: int = 1500) -> Path:
    """A looping GIF that rests on its last frame."""
    times = [milliseconds] * (len(frames) - 1) + [hold]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0)
    return path
