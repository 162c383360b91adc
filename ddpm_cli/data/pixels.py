"""Arrays of uint8 images brought to the channels and the size a model is to see."""

import torch
from torch import Tensor

# ITU-R 601-2, in 16-bit fixed point as Pillow's convert("L") has it
_LUMA = (19595, 38470, 7471)


_BLOCK = 2**23  # pixels made at once: resizing takes several times the memory of its result


def fit(images: Tensor, channels: int, image_size: int) -> Tensor:
    """(N, C, H, W) uint8, C 1 or 3 -> (N, channels, image_size, image_size) uint8.

    Grey is repeated to RGB, RGB becomes luma; bicubic with antialiasing, as Pillow's BICUBIC.
    """
    fitted = torch.empty(len(images), channels, image_size, image_size, dtype=torch.uint8)
    rows = max(1, _BLOCK // max(image_size**2, images[0, 0].numel()))
    for out, some in zip(fitted.split(rows), images.split(rows), strict=True):
        out.copy_(_resized(_grey(some) if channels == 1 else some, image_size))
    return fitted


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(_LUMA, dtype=torch.int64).view(1, 3, 1, 1)
    return ((images.long() * weights).sum(1, keepdim=True) + 0x8000 >> 16).to(torch.uint8)


def _resized(images: Tensor, image_size: int) -> Tensor:
    if images.shape[-2:] == (image_size, image_size):
        return images
    size = (image_size, image_size)
    resized = torch.nn.functional.interpolate(images.float(), size, mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)  # bicubic overshoots at edges
