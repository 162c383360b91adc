"""The U-Net of DDPM (Ho, Jain and Abbeel 2020, appendix B) and, by its settings, those of iDDPM and ADM."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_cli.models.blocks import (
    Attention,
    BlockOptions,
    DownBlock,
    Downsample,
    MidBlock,
    ResnetBlock,
    UpBlock,
    Upsample,
    conv,
)
from ddpm_cli.models.conditioning import ClassEmbedding, Cond, Conditional, TimeEmbedding


class UNet(Conditional):
    """A U-Net whose state dict diffusers' UNet2DModel loads as it stands, given `diffusers_config`.

    Level 0 is the full resolution (after `patch_size`); each further one halves it and is channel_mult times as wide.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        num_classes: int | None,
        class_conditional: bool,
        channels: int,
        channel_mult: Sequence[int],
        blocks_per_level: int,
        attention_levels: Iterable[int],
        dropout: float,
        patch_size: int = 1,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            num_classes=num_classes,
            class_conditional=class_conditional,
        )
        self.attention_levels = frozenset(attention_levels)
        self.patch_size = patch_size
        self.blocks_per_level = blocks_per_level
        check_settings(channels, channel_mult, blocks_per_level, self.attention_levels, dropout, patch_size)
        self.widths = [channels * mult for mult in channel_mult]
        first = self.widths[0]
        emb_channels = 4 * first
        self.options = BlockOptions(emb_channels, norm_groups(self.widths), dropout)
        self.time_embedding = TimeEmbedding(first, emb_channels)
        if class_conditional:
            self.class_embedding = ClassEmbedding(self.num_classes, emb_channels)
        self.conv_in = conv(in_channels * patch_size**2, first)
        self.down_blocks = nn.ModuleList(self._down_blocks())
        self.mid_block = MidBlock(self.widths[-1], self.options)
        self.up_blocks = nn.ModuleList(self._up_blocks())
        self.conv_norm_out = self.options.norm(first)
        self.conv_out = conv(first, out_channels * patch_size**2, gain=0.0)

    def _attentions(self, level: int, count: int) -> list[nn.Module]:
        """One for each residual block of a level that has attention."""
        return [Attention(self.widths[level], self.options) for _ in range(count * (level in self.attention_levels))]

    def _down_blocks(self) -> Iterable[nn.Module]:
        last = len(self.widths) - 1
        before = self.widths[0]
        for level, width in enumerate(self.widths):
            resnets = [ResnetBlock(width if i else before, width, self.options) for i in range(self.blocks_per_level)]
            down = Downsample(width) if level < last else None
            yield DownBlock(resnets, self._attentions(level, len(resnets)), down)
            before = width

    def _up_blocks(self) -> Iterable[nn.Module]:
        below = self.widths[-1]
        for level in reversed(range(len(self.widths))):
            width, above = self.widths[level], self.widths[max(level - 1, 0)]
            inputs = [below] + [width] * self.blocks_per_level
            kept = [width] * self.blocks_per_level + [above]  # the last is the output of the level above's downsampling
            resnets = [ResnetBlock(x + skip, width, self.options) for x, skip in zip(inputs, kept, strict=True)]
            yield UpBlock(resnets, self._attentions(level, len(resnets)), Upsample(width) if level else None)
            below = width

    def check_input(self, shape: Sequence[int]) -> None:
        """Raise ValueError unless images of `shape` (..., H, W) can be halved once a level."""
        factor = self.patch_size * 2 ** (len(self.widths) - 1)
        if any(size % factor for size in shape[-2:]):
            height, width = shape[-2:]
            remedy = max(factor, round(max(height, width) / factor) * factor)
            raise ValueError(
                f"images of {height}x{width} cannot be halved {len(self.widths) - 1} times by the U-Net "
                f"(model.patch_size={self.patch_size}, model.channel_mult of {len(self.widths)} levels): height and "
                f"width must be divisible by {factor}; set dataset.image_size={remedy} or shorten model.channel_mult"
            )

    def forward(self, x: Tensor, time: Tensor, cond: Cond = None) -> Tensor:
        """x: (B, in_channels, H, W), time: (B,) -> (B, out_channels, H, W)."""
        emb = self.time_embedding(time)
        if self.class_conditional:
            emb = emb + self.class_vector(cond, x.shape[0], x.device)
        emb = F.silu(emb)
        if self.patch_size > 1:
            x = F.pixel_unshuffle(x, self.patch_size)
        x = self.conv_in(x)
        kept = [x]
        for down in self.down_blocks:
            kept += down(kept[-1], emb)
        x = self.mid_block(kept[-1], emb)
        for up in self.up_blocks:
            x = up(x, emb, kept)
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        return F.pixel_shuffle(x, self.patch_size) if self.patch_size > 1 else x

    def diffusers_config(self) -> dict[str, Any]:
        """The settings with which diffusers' UNet2DModel is this network (each of them changes its output)."""
        if self.patch_size > 1:
            raise ValueError(f"model.patch_size={self.patch_size}: diffusers' UNet2DModel has no patches")
        down = ["AttnDownBlock2D" if level in self.attention_levels else "DownBlock2D" for level in self._levels()]
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "block_out_channels": self.widths,
            "layers_per_block": self.blocks_per_level,
            "down_block_types": down,
            "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
            "attention_head_dim": None,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
            "norm_num_groups": self.options.groups,
            "dropout": self.options.dropout,
            "num_class_embeds": self.num_classes + 1 if self.class_conditional else None,
        }

    def _levels(self) -> range:
        return range(len(self.widths))


def norm_groups(widths: Sequence[int]) -> int:
    """Groups of GroupNorm: 32, or fewer so that every width is divisible and a group has at least 4 channels."""
    common = math.gcd(*widths)
    return max(groups for groups in range(1, 33) if common % groups == 0 and (groups * 4 <= common or groups == 1))


def check_settings(
    channels: int,
    channel_mult: Sequence[int],
    blocks_per_level: int,
    attention_levels: Iterable[int],
    dropout: float,
    patch_size: int,
) -> None:
    """Raise ValueError for a setting that makes no U-Net, with its rule and its remedy."""
    if channels < 4 or channels % 2:
        raise ValueError(f"model.channels must be even and at least 4, got {channels}; 32 to 256 are usual")
    if not channel_mult or min(channel_mult) < 1:
        raise ValueError(
            f"model.channel_mult must hold one integer >= 1 for each level, got {list(channel_mult)}; e.g. [1,2,2]"
        )
    if blocks_per_level < 1:
        raise ValueError(f"model.blocks_per_level must be at least 1, got {blocks_per_level}; 2 is usual")
    levels = len(channel_mult)
    if outside := [level for level in attention_levels if not 0 <= level < levels]:
        raise ValueError(
            f"model.attention_levels must lie in 0..{levels - 1} (model.channel_mult has {levels} levels), "
            f"got {outside}; leave it out or add a level"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"model.dropout must lie in [0, 1), got {dropout}; 0 turns it off, 0.1 is usual")
    if patch_size < 1:
        raise ValueError(f"model.patch_size must be at least 1, got {patch_size}; 1 turns patches off")
