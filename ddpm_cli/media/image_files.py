"""One image file, of whatever kind, as pixels of the size that a model sees."""

import io
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from ddpm_cli.errors import UserError
from ddpm_cli.media.base import DecodeError

log = logging.getLogger("ddpm_cli")

File = Path | IO[bytes]
Size = int | Sequence[int]  # a square's side, or height and width

_ORIENTATION = 0x0112  # EXIF tag
_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}  # brands, bytes 8 to 12 of a file
_LUMA = np.array([0.299, 0.587, 0.114], np.float32).reshape(3, 1, 1)  # ITU-R 601-2
_DEEP = 65535  # white, in 16 bits


def decode(file: File, channels: int, size: Size, dtype: str = "uint8") -> np.ndarray:
    """(channels, H, W) of `dtype`, uint8 or uint16: upright, scaled to cover `size`, centre cropped.

    Transparency lies over white, palettes and CMYK become RGB, of an animation the first frame counts. 16 bits are
    rounded to 8, or 8 spread over 16. Bicubic with antialiasing. Floating-point images are refused: their range is
    anybody's guess.
    """
    height, width = sides(size)
    try:
        if dtype == "uint16":
            return _deep(file, channels, height, width)
        with _opened(file) as image:
            # a JPEG is decoded at a fraction of its size; three times the target leaves no visible difference
            image.draft(None, (3 * width, 3 * height))
            tile: Any = image.tile if isinstance(image, ImageFile.ImageFile) else ()
            if tile and ";16" in str(tile[0][3]):
                _told_of_rounding()
            return pixels_of(image, channels, size)
    except (DecodeError, UserError):
        raise
    except Exception as error:  # Pillow's plugins raise anything: OSError, SyntaxError, struct.error, ValueError ...
        raise DecodeError(_reason(error, file)) from error


def shape_of(file: File) -> tuple[int, int, int]:
    """(channels, H, W) as the file has them, which is not read further; DecodeError where it is no image."""
    try:
        with _opened(file) as image:
            return (1 if image.mode in ("1", "L") or _is_deep(image) else 3, image.height, image.width)
    except UserError:
        raise
    except Exception as error:  # as in decode
        raise DecodeError(_reason(error, file)) from error


def pixels_of(image: Image.Image, channels: int, size: Size) -> np.ndarray:
    """As decode, in uint8, of an image that is open."""
    pixels = np.asarray(_covering(_plain(image, channels), *sides(size)))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None])


def sides(size: Size) -> tuple[int, int]:
    """Height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _opened(file: File) -> Image.Image:
    """Pillow's view of a file; HEIF by its plugin, which is looked for when the first such file is met."""
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        head = _bytes(file, 12)
        if head[4:8] != b"ftyp" or head[8:] not in _HEIF:
            raise
        _register_heif()
        return Image.open(file)


@cache
def _register_heif() -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise UserError('HEIC is read by pillow-heif, which is not installed: pip install "ddpm_cli[heic]"') from error
    pillow_heif.register_heif_opener()


@cache
def _told_of_rounding() -> None:
    log.warning("images of 16 bits are rounded to 8; of a folder, dataset.dtype=uint16 keeps what they hold")


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """The image upright and in mode L or RGB."""
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise DecodeError("floating-point pixels; convert it to 8 or 16 bits")
    if _is_deep(image):
        wide = np.asarray(image).astype(np.int64).clip(0, _DEEP)
        image = Image.fromarray(((wide * 255 + 32767) // _DEEP).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "RGB" if channels == 3 else "L"
    if image.mode in ("P", "PA") and mode == "L":
        image = image.convert("RGB")
    image.load()  # convert() to the same mode would not, and a truncated file must not pass
    return image if image.mode == mode else image.convert(mode)


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "I" or image.mode.startswith("I;16")


def _covering(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scaled and cropped in one go: the largest centred part of that aspect, resampled."""
    if image.size == (width, height):
        return image
    scale = min(image.width / width, image.height / height)
    part_w, part_h = (
        (scale * width, scale * height) if height != width else (min(image.size), min(image.size))  # with no rounding
    )
    left, top = (image.width - part_w) / 2, (image.height - part_h) / 2
    box: Any = (left, top, min(left + part_w, image.width), min(top + part_h, image.height))
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def _deep(file: File, channels: int, height: int, width: int) -> np.ndarray:
    """As decode, in 16 bits. Pillow has no colour images of so many: PNGs of 16 bits are read by torchvision."""
    content = _bytes(file)
    if content[:8] == b"\x89PNG\r\n\x1a\n" and content[24:25] == b"\x10":
        pixels = _png16(content)
    else:
        with _opened(io.BytesIO(content)) as image:
            pixels = _wide(image)
    planes = _coloured(pixels.astype(np.float32), channels)
    if planes.shape[1:] != (height, width):
        planes = np.stack([np.asarray(_covering(Image.fromarray(plane), height, width)) for plane in planes])
    return planes.round().clip(0, _DEEP).astype(np.uint16)


def _png16(content: bytes) -> np.ndarray:
    """(1 to 4, H, W) uint16: grey or RGB, the last of two or four being opacity."""
    import torch
    from torchvision.io import ImageReadMode, decode_png

    return decode_png(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.UNCHANGED).numpy()


def _wide(image: Image.Image) -> np.ndarray:
    """(1 or 3, H, W) in 16 bits of what Pillow reads."""
    if _is_deep(image):
        upright = ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image
        return np.asarray(upright).astype(np.int64).clip(0, _DEEP)[None]
    grey = image.mode in ("1", "L")
    pixels = np.asarray(_plain(image, 1 if grey else 3))
    return np.atleast_3d(pixels).transpose(2, 0, 1).astype(np.int64) * 257


def _coloured(planes: np.ndarray, channels: int) -> np.ndarray:
    """(1 to 4, H, W) float32 -> (channels, H, W): laid on white, grey repeated, RGB as luma."""
    if len(planes) in (2, 4):
        opacity = planes[-1:] / _DEEP
        planes = planes[:-1] * opacity + _DEEP * (1 - opacity)
    if channels == 3:
        return np.repeat(planes, 3, axis=0) if len(planes) == 1 else planes
    return planes if len(planes) == 1 else (planes * _LUMA).sum(0, keepdims=True)


def _bytes(file: File, count: int = -1) -> bytes:
    if isinstance(file, Path):
        with open(file, "rb") as opened:
            return opened.read(count)
    file.seek(0)
    content = file.read(count)
    file.seek(0)
    return content


def _reason(error: Exception, file: File) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if not _bytes(file, 1):
        return "empty file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return str(error) or type(error).__name__
