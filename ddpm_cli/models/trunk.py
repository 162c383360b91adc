"""The shape all U-Nets share: levels on the way down, the middle, and levels on the way up that take what was kept."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_cli.models.blocks import Attention, BlockOptions, Downsample, ResnetBlock, Upsample, arranged, conv
from ddpm_cli.models.conditioning import Conditional


@dataclass(frozen=True)
class Plan:
    """The sizes of a U-Net; level 0 is the full resolution, each further one halves it."""

    first: int  # channels of the first convolution
    widths: tuple[int, ...]  # channels of each level
    blocks_per_level: int  # residual blocks on the way down; one more on the way up
    attention_levels: frozenset[int]
    resblock_updown: bool = False  # residual blocks change the resolution, instead of one convolution
    patch_size: int = 1  # patches of this size become channels before the first convolution
    attend_once_up: bool = False  # on the way up attention follows the last block of a level only (DDPM++)
    norm_num_groups: int | None = None  # of GroupNorm; None: as many as suit

    @property
    def attending(self) -> list[int]:
        """The widths that have attention, the middle's among them."""
        return sorted({self.widths[level] for level in self.attention_levels} | {self.widths[-1]})

    @property
    def groups(self) -> int:
        """Of GroupNorm: 32, or fewer so that every width is divisible and a group has at least 4 channels."""
        if self.norm_num_groups is not None:
            return self.norm_num_groups
        common = math.gcd(self.first, *self.widths)
        return max(n for n in range(1, 33) if common % n == 0 and (n == 1 or 4 * n <= common))


class DownBlock(nn.Module):
    """One level on the way down; every output is kept for the way up."""

    def __init__(self, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module], down: nn.Module | None) -> None:
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(resnets), nn.ModuleList(attentions)
        self.downsamplers = nn.ModuleList([] if down is None else [down])

    def forward(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """x: (B, C, H, W) -> the output of each residual block and of the downsampling, in order."""
        outputs = []
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(x, emb))
            outputs.append(x)
        outputs.extend(down(x, emb) for down in self.downsamplers)
        return outputs


class MidBlock(nn.Module):
    """The lowest level: residual block, attention, residual block."""

    def __init__(self, channels: int, options: BlockOptions) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, options) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(channels, options)])

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, emb)), emb)


class UpBlock(nn.Module):
    """One level on the way up; each residual block takes one of the outputs kept on the way down."""

    def __init__(self, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module], up: nn.Module | None) -> None:
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(resnets), nn.ModuleList(attentions)
        self.upsamplers = nn.ModuleList([] if up is None else [up])

    def forward(self, x: Tensor, emb: Tensor, kept: list[Tensor]) -> Tensor:
        """x: (B, C, H, W); takes the last of `kept` off for each residual block."""
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(torch.cat([x, kept.pop()], dim=1), emb))
        for up in self.upsamplers:
            x = up(x, emb)
        return x


class Trunk(Conditional):
    """A U-Net but for its embedding: `walk` takes an image and the embedding to the output."""

    def __init__(self, plan: Plan, options: BlockOptions, in_channels: int, out_channels: int, **classes: Any) -> None:
        super().__init__(in_channels, out_channels, **classes)
        self.plan, self.options = plan, options
        patch, dims = plan.patch_size**options.dims, options.dims
        self.conv_in = conv(in_channels * patch, plan.first, dims=dims)
        self.down_blocks = nn.ModuleList(self._down_blocks())
        self.mid_block = MidBlock(plan.widths[-1], options)
        self.up_blocks = nn.ModuleList(self._up_blocks())
        self.conv_norm_out = options.norm(plan.widths[0])
        self.conv_out = conv(plan.widths[0], out_channels * patch, gain=options.last_gain, dims=dims)

    def check_input(self, shape: Sequence[int]) -> None:
        """Raise ValueError unless items of `shape` (C, H, W), or (C, L) for dims=1, can be halved once a level."""
        check_sides(shape, self.plan)

    def walk(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: (B, in_channels, H, W), emb: (B, E), already through SiLU -> (B, out_channels, H, W)."""
        x = arranged(self.conv_in(arranged(to_patches(x, self.plan.patch_size))))
        kept = [x]
        for down in self.down_blocks:
            kept += down(kept[-1], emb)
        x = self.mid_block(kept[-1], emb)
        for up in self.up_blocks:
            x = up(x, emb, kept)
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        return from_patches(x, self.plan.patch_size)

    def _down_blocks(self) -> Iterator[DownBlock]:
        before, last = self.plan.first, len(self.plan.widths) - 1
        for level, width in enumerate(self.plan.widths):
            inputs = [before] + [width] * (self.plan.blocks_per_level - 1)
            resnets = [ResnetBlock(channels, width, self.options) for channels in inputs]
            attends = [level in self.plan.attention_levels] * len(resnets)
            yield DownBlock(resnets, self._attentions(width, attends), self._resample("down", width, level < last))
            before = width

    def _up_blocks(self) -> Iterator[UpBlock]:
        widths, count = self.plan.widths, self.plan.blocks_per_level
        below = widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            above = widths[level - 1] if level else self.plan.first  # of the level's own input, kept last
            inputs = [below + width] + [2 * width] * (count - 1) + [width + above]
            resnets = [ResnetBlock(channels, width, self.options) for channels in inputs]
            attends = [level in self.plan.attention_levels] * len(resnets)
            if self.plan.attend_once_up:
                attends[:-1] = [False] * count
            yield UpBlock(resnets, self._attentions(width, attends), self._resample("up", width, level > 0))
            below = width

    def _attentions(self, width: int, attends: Sequence[bool]) -> list[nn.Module]:
        return [Attention(width, self.options) if attend else nn.Identity() for attend in attends]

    def _resample(self, direction: str, width: int, wanted: bool) -> nn.Module | None:
        if not wanted:
            return None
        if self.plan.resblock_updown:
            return ResnetBlock(width, width, self.options, resample=direction)
        if direction == "up":
            return Upsample(width, self.options.dims)
        return Downsample(width, self.options.dims, self.options.downsample_padding)


def check_sides(shape: Sequence[int], plan: Plan) -> None:
    """Raise ValueError unless items of `shape` (C, H, W), or (C, L), can be halved once a level of the plan."""
    sides = shape[1:]
    halvings, patch_size = len(plan.widths) - 1, plan.patch_size
    factor = patch_size * 2**halvings
    if all(side % factor == 0 for side in sides):
        return
    remedy = math.ceil(max(sides) / factor) * factor
    setting = {1: f"dataset.num_samples={remedy}", 2: f"dataset.image_size={remedy}"}[len(sides)]
    often = "once" if halvings == 1 else f"{halvings} times"
    which = "height and width" if len(sides) == 2 else "the length"
    raise ValueError(
        f"items of {_told(sides)} cannot be halved {often} (model.channel_mult has {halvings + 1} "
        f"levels, model.patch_size={patch_size}): {which} must be divisible by {factor}; "
        f"set {setting} or shorten model.channel_mult"
    )


def to_patches(x: Tensor, size: int) -> Tensor:
    """(B, C, H, W) -> (B, C size^2, H / size, W / size), or (B, C, L) -> (B, C size, L / size)."""
    if size == 1:
        return x
    return F.pixel_unshuffle(x, size) if x.ndim == 4 else x.unflatten(2, (-1, size)).transpose(2, 3).flatten(1, 2)


def from_patches(x: Tensor, size: int) -> Tensor:
    """The way back."""
    if size == 1:
        return x
    return F.pixel_shuffle(x, size) if x.ndim == 4 else x.unflatten(1, (-1, size)).transpose(2, 3).flatten(2, 3)


def _told(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def checked_plan(
    channels: int,
    channel_mult: Sequence[int],
    blocks_per_level: int,
    attention_levels: Sequence[int],
    head_channels: int | None = None,
    first: int | None = None,
    num_heads: int | None = None,
    **others: Any,
) -> Plan:
    """The plan with level i channels * channel_mult[i] wide; ValueError where the settings make no U-Net.

    first: channels of the first convolution, None for those of level 0. The table of knobs has the range of each
    setting; here stand relations between them, and what would otherwise make another network than was asked for.
    """
    levels = len(channel_mult)
    outside = [level for level in attention_levels if not 0 <= level < levels]
    if not isinstance(channels, int):
        raise ValueError(f"model.channels must be one number for a U-Net, got {channels}; see model.channel_mult")
    if channels < 4 or channels % 2:
        raise ValueError(f"model.channels must be even and at least 4, got {channels}; 32 to 256 are usual")
    if not levels or min(channel_mult) < 1:
        raise ValueError(
            f"model.channel_mult must hold an integer >= 1 for each level, got {list(channel_mult)}; e.g. [1,2,2]"
        )
    if blocks_per_level < 1:
        raise ValueError(f"model.blocks_per_level must be at least 1, got {blocks_per_level}; 2 is usual")
    if outside:
        raise ValueError(
            f"model.attention_levels must lie in 0..{levels - 1} (model.channel_mult has {levels} levels), "
            f"got {outside}; leave it out or add a level"
        )
    widths = tuple(channels * mult for mult in channel_mult)
    groups = others.get("norm_num_groups")
    if groups is not None and any(width % groups for width in widths):
        raise ValueError(f"model.norm_num_groups must divide every width, {sorted(set(widths))}, got {groups}")
    plan = Plan(first or widths[0], widths, blocks_per_level, frozenset(attention_levels), **others)
    for name, divisor in (("head_channels", head_channels), ("num_heads", num_heads)):
        if divisor is not None and (divisor < 1 or any(width % divisor for width in plan.attending)):
            raise ValueError(
                f"model.{name} must divide the widths that have attention, {plan.attending}, got {divisor}; "
                "null gives one head"
            )
    return plan
