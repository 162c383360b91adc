"""One image file, of whatever kind, as square uint8 pixels."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

_ORIENTATION = 0x0112  # EXIF tag


class DecodeError(Exception):
    """Why a file gives no image, in words; the caller knows its path."""


def decode(path: Path, channels: int, image_size: int) -> np.ndarray:
    """(channels, image_size, image_size) uint8: upright, shorter side scaled to image_size, centre cropped.

    Transparency lies over white, palettes and CMYK become RGB, 16 bits are rounded to 8, of an animation the first
    frame counts. Bicubic with antialiasing. Floating-point images are refused: their range is anybody's guess.
    """
    try:
        with Image.open(path) as image:
            # a JPEG is decoded at a fraction of its size; three times the target leaves no visible difference
            image.draft(None, (3 * image_size, 3 * image_size))
            pixels = np.asarray(_square(_plain(image, channels), image_size))
    except DecodeError:
        raise
    except Exception as error:  # Pillow's plugins raise anything: OSError, SyntaxError, struct.error, ValueError ...
        raise DecodeError(_reason(error, path)) from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None])


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """The image upright and in mode L or RGB."""
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise DecodeError("floating-point pixels; convert it to 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "RGB" if channels == 3 else "L"
    if image.mode in ("P", "PA") and mode == "L":
        image = image.convert("RGB")
    image.load()  # convert() to the same mode would not, and a truncated file must not pass
    return image if image.mode == mode else image.convert(mode)


def _square(image: Image.Image, size: int) -> Image.Image:
    """Scaled and cropped in one go: the largest centred square, resampled to size x size."""
    width, height = image.size
    if (width, height) == (size, size):
        return image
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box: Any = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if path.stat().st_size == 0:
        return "empty file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return str(error) or type(error).__name__
