"""EDM2's U-Net (Karras et al. 2024, config G, Figure 21): layers that keep the magnitude of what goes through them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ddpm_cli.models.attention import attend
from ddpm_cli.models.blocks import double, halve
from ddpm_cli.models.checkpointed import Checkpointed, checkpoint_blocks
from ddpm_cli.models.conditioning import Cond, Conditional
from ddpm_cli.models.dropout import dropout
from ddpm_cli.models.magnitude import (
    MPClassEmbedding,
    MPConv,
    MPFourier,
    force_normalised,
    mp_cat,
    mp_silu,
    mp_sum,
    normalised,
)
from ddpm_cli.models.trunk import check_sides, checked_plan

_RESIDUAL, _ATTENTION, _CLASS = 0.3, 0.3, 0.5  # share of what is added, in mp_sum
_TIME_SPAN = 2.65  # of ln(sigma) / 4 from 0.002 to 80, the paper's levels


@dataclass(frozen=True)
class Options:
    """What all blocks of one network have in common."""

    emb_channels: int
    dropout: float
    head_channels: int | None  # None: one head


class Residual(nn.Module):
    """What a block adds: mp_silu, conv, times the embedding, mp_silu, dropout, conv. The embedding is gated by a gain
    that starts at zero."""

    def __init__(self, in_channels: int, out_channels: int, options: Options) -> None:
        super().__init__()
        self.dropout = options.dropout
        self.conv1 = MPConv(in_channels, out_channels, 3)
        self.emb_proj = MPConv(options.emb_channels, out_channels)
        self.emb_gain = nn.Parameter(torch.zeros(()))
        self.conv2 = MPConv(out_channels, out_channels, 3)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: (B, in, H, W), emb: (B, E) -> (B, out, H, W)."""
        y = self.conv1(mp_silu(x))
        scale = 1 + self.emb_gain * self.emb_proj(emb)
        y = mp_silu(y * scale.to(y.dtype)[:, :, None, None])
        return self.conv2(dropout(y, self.dropout, self.training))


class CosineAttention(nn.Module):
    """Self-attention over the pixels, added to its input; queries, keys and values are of unit magnitude."""

    def __init__(self, channels: int, options: Options) -> None:
        super().__init__()
        self.heads = channels // (options.head_channels or channels)
        self.qkv = MPConv(channels, 3 * channels, 1)
        self.proj = MPConv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, H, W)."""
        qkv = self.qkv(x).flatten(2).unflatten(1, (3, self.heads, -1))  # (B, 3, heads, C / heads, N)
        q, k, v = normalised(qkv, 3).transpose(3, 4).unbind(1)
        out = attend(q, k, v).transpose(2, 3).flatten(1, 2)  # (B, C, N)
        return mp_sum(x, self.proj(out.unflatten(2, x.shape[2:])), _ATTENTION)


class EncoderBlock(Checkpointed):
    """On the way down; its input is normalised over the channels of each pixel. The first of a level halves it."""

    def __init__(
        self, in_channels: int, out_channels: int, options: Options, *, attention: bool = False, down: bool = False
    ) -> None:
        super().__init__()
        self.down = down
        self.skip = MPConv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.residual = Residual(out_channels, out_channels, options)
        self.attention = CosineAttention(out_channels, options) if attention else nn.Identity()

    def compute(self, x: Tensor, emb: Tensor) -> Tensor:
        x = normalised(self.skip(halve(x) if self.down else x), 1)
        return self.attention(mp_sum(x, self.residual(x, emb), _RESIDUAL))


class DecoderBlock(Checkpointed):
    """In the middle and on the way up. kept_channels: of what it takes from the way down, beside its input."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        options: Options,
        *,
        kept_channels: int = 0,
        attention: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        self.kept_channels, self.up = kept_channels, up
        whole = in_channels + kept_channels
        self.skip = MPConv(whole, out_channels, 1) if whole != out_channels else nn.Identity()
        self.residual = Residual(whole, out_channels, options)
        self.attention = CosineAttention(out_channels, options) if attention else nn.Identity()

    def compute(self, x: Tensor, emb: Tensor) -> Tensor:
        x = double(x) if self.up else x
        return self.attention(mp_sum(self.skip(x), self.residual(x, emb), _RESIDUAL))


class EDM2(Conditional):
    """A U-Net without biases and learned norms, whose weights are of unit magnitude after every update and on use.

    bandwidth: of the time's Fourier features, as the paper's code has it for a time of ln(sigma) / 4. time_span: how
    far the times go that the network is told; the features go through as many periods over them, whatever they are.
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
        attention_levels: Sequence[int],
        dropout: float,
        head_channels: int | None = None,
        bandwidth: float = 1.0,
        checkpointing: bool = False,
        vector_dim: int = 0,
        time_span: float = _TIME_SPAN,
    ) -> None:
        super().__init__(in_channels, out_channels, num_classes=num_classes, class_conditional=class_conditional)
        self.plan = checked_plan(channels, channel_mult, blocks_per_level, attention_levels, head_channels)
        first, emb_channels = self.plan.first, max(self.plan.widths)
        options = Options(emb_channels, dropout, head_channels)
        self.fourier = MPFourier(first, bandwidth * _TIME_SPAN / time_span)
        self.time_embedding = MPConv(first, emb_channels)
        if class_conditional:
            self.class_embedding = MPClassEmbedding(self.num_classes, emb_channels)
        self.vector_embedding = MPConv(vector_dim, emb_channels) if vector_dim else None
        self.conv_first = MPConv(in_channels + 1, first, 3)
        self.encoder = nn.ModuleList(self._encoder(options))
        self.decoder = nn.ModuleList(self._decoder(options))
        self.conv_last = MPConv(self.plan.widths[0], out_channels, 3)
        self.gain = nn.Parameter(torch.zeros(()))
        checkpoint_blocks(self, checkpointing)
        self.project_weights()

    def check_input(self, shape: Sequence[int]) -> None:
        """Raise ValueError unless images of `shape` (C, H, W) can be halved once a level."""
        check_sides(shape, self.plan)

    def project_weights(self) -> None:
        """Forced weight normalisation (config E, Algorithm 1). The paper has it before a training step's forward pass;
        behind the update it sees the same weights, and a pass that is given up or repeated changes nothing."""
        force_normalised(self)

    def forward(self, x: Tensor, time: Tensor, cond: Cond = None) -> Tensor:
        """x: (B, in_channels, H, W), time: (B,) -> (B, out_channels, H, W)."""
        emb = self.time_embedding(self.fourier(time).to(x.dtype))
        if self.class_conditional:
            emb = mp_sum(emb, self.class_vector(cond, x.shape[0], x.device).to(emb.dtype), _CLASS)
        emb = self.with_vector(emb, cond, partial(mp_sum, t=_CLASS))
        emb = mp_silu(emb)
        x = self.conv_first(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))  # ones: in place of biases
        kept = [x]
        for block in self.encoder:
            x = block(x, emb)
            kept.append(x)
        for block in self.decoder:
            x = block(mp_cat(x, kept.pop()) if block.kept_channels else x, emb)
        return self.conv_last(x) * self.gain

    def _encoder(self, options: Options) -> Iterator[EncoderBlock]:
        before = self.plan.first
        for level, width in enumerate(self.plan.widths):
            if level:
                yield EncoderBlock(before, before, options, down=True)
            for _ in range(self.plan.blocks_per_level):
                yield EncoderBlock(before, width, options, attention=level in self.plan.attention_levels)
                before = width

    def _decoder(self, options: Options) -> Iterator[DecoderBlock]:
        widths, count, below = self.plan.widths, self.plan.blocks_per_level, self.plan.widths[-1]
        kept = [self.plan.first]  # channels of what the encoder puts out
        for level, width in enumerate(widths):
            kept += [widths[level - 1]] * min(level, 1) + [width] * count
        yield DecoderBlock(below, below, options, attention=True)
        yield DecoderBlock(below, below, options)
        for level, width in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                yield DecoderBlock(below, below, options, up=True)
            for _ in range(count + 1):
                attention = level in self.plan.attention_levels
                yield DecoderBlock(below, width, options, kept_channels=kept.pop(), attention=attention)
                below = width
