"""Arrays of uint8 images brought to the channels and the size a model is to see."""

import torch
from torch import Tensor

# ITU-R 601-2, in 16-bit fixed point as Pillow's convert("L") has it
_LUMA = (19595, 38470, 7471)


def fit(images: Tensor, channels: int, image_size: int) -> Tensor:
    """(N, C, H, W) uint8, C 1 or 3 -> (N, channels, image_size, image_size) uint8.

    Grey is repeated to RGB, RGB becomes luma; bicubic with antialiasing, as Pillow's BICUBIC.
    """
    if images.shape[1] == 3 and channels == 1:
        weights = torch.tensor(_LUMA, dtype=torch.int64).view(1, 3, 1, 1)
        images = ((images.long() * weights).sum(1, keepdim=True) + 0x8000 >> 16).to(torch.uint8)
    if images.shape[-2:] != (image_size, image_size):
        size = (image_size, image_size)
        resized = torch.nn.functional.interpolate(images.float(), size, mode="bicubic", antialias=True)
        images = resized.round().clamp(0, 255).to(torch.uint8)  # bicubic overshoots at edges
    return images.expand(-1, channels, -1, -1).contiguous()
