"""EDM's augmentations (Karras et al. 2022, appendix F.2): geometric changes of the images, each told to the network, so
that it draws none of them when it is told of none."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_DRAWS, NUM_LABELS = 13, 9
_SCALE_STD, _ANISO_STD, _TRANSLATE_STD = 0.2, 0.2, 0.125  # octaves, octaves, of the image's side


@dataclass(frozen=True)
class GeometricAugment:
    """(images, u) -> images, labels. Each but the mirroring left to right, which half of the images get, happens with
    this probability.

    Images are resampled bicubically with reflected borders (EDM's code filters with a wavelet besides); those that are
    not, stay as they are to the bit.
    """

    probability: float

    def __call__(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """x: (B, C, H, W), u: (B, 13) uniform in [0, 1) -> (B, C, H, W), and (B, 9) of which 0 is "not changed"."""
        p, number = self.probability, u.double()
        x_flip, y_flip = u[:, 0] < 0.5, u[:, 1] < p / 2
        scale = torch.where(u[:, 2] < p, _normal(number[:, 3]), 0.0)
        angle = torch.where(u[:, 4] < p, (2 * number[:, 5] - 1) * math.pi, 0.0)
        aniso = torch.where(u[:, 6] < p, _normal(number[:, 7]), 0.0)
        axis = torch.where(u[:, 8] < 0.5, (2 * number[:, 9] - 1) * math.pi, 0.0)
        shift = torch.where(u[:, 10:11] < p, _normal(number[:, 11:13]), 0.0)
        labels = torch.stack(
            [
                x_flip.double(), y_flip.double(), scale, angle.cos() - 1, angle.sin(), aniso * axis.cos(),
                aniso * axis.sin(), shift[:, 0], shift[:, 1],
            ],
            dim=1,
        )  # fmt: skip
        x = torch.where(x_flip.view(-1, 1, 1, 1), x.flip(-1), x)
        x = torch.where(y_flip.view(-1, 1, 1, 1), x.flip(-2), x)
        warped = _warp(x, _backward_map(scale, angle, aniso, axis), shift * _TRANSLATE_STD)
        moved = labels[:, 2:].abs().sum(1) > 0
        return torch.where(moved.view(-1, 1, 1, 1), warped, x), labels.to(x.dtype)


def _normal(u: Tensor) -> Tensor:
    return torch.special.ndtri(u.clamp(2**-26, 1 - 2**-26))


def _rotation(angle: Tensor) -> Tensor:
    """(B, 2, 2)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def _backward_map(scale: Tensor, angle: Tensor, aniso: Tensor, axis: Tensor) -> Tensor:
    """(B, 2, 2): from a place in the new image, seen from the centre, to its place in the old one."""
    stretch = torch.exp2(aniso * _ANISO_STD)
    stretched = _rotation(-axis) @ torch.diag_embed(torch.stack([1 / stretch, stretch], 1)) @ _rotation(axis)
    return torch.exp2(-scale * _SCALE_STD).view(-1, 1, 1) * _rotation(angle) @ stretched


def _warp(x: Tensor, backward: Tensor, shift: Tensor) -> Tensor:
    """x: (B, C, H, W), backward: (B, 2, 2), shift: (B, 2) in sides of the image, x first."""
    height, width = x.shape[-2:]
    size = torch.tensor([width, height], dtype=torch.float64, device=x.device)
    rows, columns = (torch.arange(n, dtype=torch.float64, device=x.device) + 0.5 - n / 2 for n in (height, width))
    places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)  # (H, W, 2) pixels from the centre
    old = torch.einsum("bij,bhwj->bhwi", backward, places - (shift * size).view(-1, 1, 1, 2))
    grid = (old / (size / 2)).to(x.dtype)
    return F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
