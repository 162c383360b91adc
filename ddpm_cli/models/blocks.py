"""The bricks of the U-Nets: residual block, self-attention, down- and upsampling; named as in diffusers."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_cli.models.attention import attend
from ddpm_cli.models.checkpointed import Checkpointed
from ddpm_cli.models.conditioning import linear
from ddpm_cli.models.dropout import dropout

Conv = nn.Conv1d | nn.Conv2d
CONVOLUTIONS: dict[int, type[Conv]] = {1: nn.Conv1d, 2: nn.Conv2d}  # by the dimensions of what they go over


def conv(in_channels: int, out_channels: int, kernel: int = 3, *, gain: float = 1.0, dims: int = 2) -> Conv:
    """A convolution initialised as in DDPM: fan-average uniform weights times `gain`, zero bias."""
    return initialised(CONVOLUTIONS[dims](in_channels, out_channels, kernel, padding=kernel // 2), gain)


def initialised(layer: Conv, gain: float = 1.0) -> Conv:
    """The layer with fan-average uniform weights times `gain` and zero bias."""
    nn.init.xavier_uniform_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


@dataclass(frozen=True)
class BlockOptions:
    """What all blocks of one network have in common."""

    emb_channels: int
    groups: int  # of GroupNorm
    dropout: float
    head_channels: int | None = None  # None: one head
    scale_shift_norm: bool = False  # the embedding scales and shifts norm2's output (iDDPM), not just adds to its input
    skip_scale: float = 1.0  # of the sum of a block's input and output; the root of 1/2 keeps its variance (DDPM++)
    resample_shortcut: bool = False  # a block that resamples has a 1x1 convolution on its shortcut (DDPM++)
    last_gain: float = 0.0  # initial gain of the last layer of a block, so that it starts as (nearly) nothing
    attention_gain: float = 1.0  # initial gain of the query, key and value layers
    dims: int = 2  # of what they work on: 2 for images (B, C, H, W), 1 for sounds (B, C, L)
    eps: float = 1e-6  # of GroupNorm
    num_heads: int | None = None  # of attention at every width, in place of head_channels
    downsample_padding: int = 0  # before the first row and column, beside the one behind the last

    def norm(self, channels: int) -> nn.GroupNorm:
        return nn.GroupNorm(self.groups, channels, eps=self.eps)


class ResnetBlock(Checkpointed):
    """norm, SiLU, conv, + embedding, norm, SiLU, dropout, conv, + input (DDPM, appendix B).

    With `resample` ("down" or "up") it halves or doubles the image as well (Song et al. 2021, ADM)."""

    def __init__(self, in_channels: int, out_channels: int, options: BlockOptions, resample: str | None = None) -> None:
        super().__init__()
        self.dropout, self.scale_shift_norm = options.dropout, options.scale_shift_norm
        self.skip_scale = options.skip_scale
        self.resample = {None: None, "down": halve, "up": double}[resample]
        self.norm1 = options.norm(in_channels)
        self.conv1 = conv(in_channels, out_channels, dims=options.dims)
        self.time_emb_proj = linear(options.emb_channels, out_channels * (2 if options.scale_shift_norm else 1))
        self.norm2 = options.norm(out_channels)
        self.conv2 = conv(out_channels, out_channels, gain=options.last_gain, dims=options.dims)
        shortcut = in_channels != out_channels or (resample is not None and options.resample_shortcut)
        self.conv_shortcut = conv(in_channels, out_channels, 1, dims=options.dims) if shortcut else None

    def compute(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: (B, C, H, W); emb: (B, E), already through SiLU, which all blocks share."""
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        emb = self.time_emb_proj(emb).unflatten(1, (-1, *[1] * (x.ndim - 2)))
        if self.scale_shift_norm:
            scale, shift = emb.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + emb)
        h = self.conv2(dropout(F.silu(h), self.dropout, self.training))
        return scaled(h + (x if self.conv_shortcut is None else self.conv_shortcut(x)), self.skip_scale)


class Attention(Checkpointed):
    """Self-attention over the pixels, added to its input; one head unless `head_channels` says otherwise."""

    def __init__(self, channels: int, options: BlockOptions) -> None:
        super().__init__()
        self.heads = options.num_heads or channels // (options.head_channels or channels)
        self.skip_scale = options.skip_scale
        self.group_norm = options.norm(channels)
        self.to_q, self.to_k, self.to_v = (linear(channels, channels, options.attention_gain) for _ in range(3))
        self.to_out = nn.ModuleList([linear(channels, channels, options.last_gain)])

    def compute(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, H, W)."""
        # As one matrix, which all three multiply at once; of a transposed one each image would be multiplied alone.
        tokens = self.group_norm(x).flatten(2).transpose(1, 2).contiguous()  # (B, N, C)
        q, k, v = (
            project(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, C / heads)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        out = self.to_out[0](attend(q, k, v).transpose(1, 2).flatten(2))  # (B, N, C)
        return scaled(x + out.transpose(1, 2).unflatten(2, x.shape[2:]), self.skip_scale)


def scaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else x * scale


def arranged(x: Tensor) -> Tensor:
    """x, (B, C, H, W) or (B, C, L), in the memory layout that is fastest for what follows at its size; on a GPU it has
    that of the weights.

    Of images of 32x32 and more that are drawn on CPU the channels are last, where convolutions take 0.5 to 0.98 of the
    time. In smaller images norms would take ten times as long, and so they would in a backward pass.
    """
    if not _image_on_cpu(x):
        return x
    last = x.shape[2] * x.shape[3] >= 32 * 32 and not torch.is_grad_enabled()
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def halve(x: Tensor) -> Tensor:
    return arranged(F.avg_pool1d(x, 2) if x.ndim == 3 else F.avg_pool2d(x, 2))


def double(x: Tensor) -> Tensor:
    """Every pixel becomes four, or every sample two."""
    return arranged(_doubled(x))


def _doubled(x: Tensor) -> Tensor:
    """On CPU with the channels last, where torch's kernel is 5 to 10 times as fast."""
    x = x.contiguous(memory_format=torch.channels_last) if _image_on_cpu(x) else x
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _image_on_cpu(x: Tensor) -> bool:
    return x.ndim == 4 and x.device.type == "cpu"


class Downsample(nn.Module):
    """A convolution of stride 2, padded on the right and below as TensorFlow's SAME does (DDPM), or with padding=1 on
    all sides (diffusers' default)."""

    def __init__(self, channels: int, dims: int = 2, padding: int = 0) -> None:
        super().__init__()
        self.padding = padding
        self.conv = initialised(CONVOLUTIONS[dims](channels, channels, 3, stride=2))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """emb is unused: one call for both ways to resample."""
        return arranged(self.conv(F.pad(x, (self.padding, 1) * (x.ndim - 2))))


class Upsample(nn.Module):
    """Every pixel becomes four, or every sample two, then a convolution."""

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__()
        self.conv = conv(channels, channels, dims=dims)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """emb is unused: one call for both ways to resample."""
        if folding_pays(x) and not self.conv._forward_hooks:  # which would see nothing of it
            x = F.conv_transpose2d(x, fold_doubling(self.conv.weight), self.conv.bias, stride=2, padding=1)
            return arranged(x)
        return arranged(self.conv(_doubled(x)))


def fold_doubling(weight: Tensor) -> Tensor:
    """weight: (O, I, 3, 3) of a convolution of a doubled image -> (I, O, 4, 4) of the equal transposed one.

    The transposed convolution spreads the flipped kernel over 2x2 pixels, as doubling and then convolving does, with
    16 instead of 36 products for an input pixel.
    """
    kernel = weight.flip(2, 3).transpose(0, 1)
    rows = F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))
    return F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))


def folding_pays(x: Tensor) -> bool:
    """Whether the transposed convolution is the faster one: in fp32 on CPU from 8x8 up (16x16: x1.9; in bf16 x0.7)."""
    low_precision = x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
    return _image_on_cpu(x) and not low_precision and x.shape[2] * x.shape[3] >= 64
