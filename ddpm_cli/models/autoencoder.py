"""The autoencoder whose latents are diffused (Rombach et al. 2022): diffusers' AutoencoderKL, named as there.

It is trained as any network is (loss=autoencoding), and then frozen: the first stage.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_cli.models.blocks import Attention, BlockOptions, Downsample, Upsample, conv
from ddpm_cli.models.checkpointed import Checkpointed
from ddpm_cli.models.conditioning import Cond, Network

_LOG_VARIANCES = (-30.0, 20.0)  # as diffusers clamps them
_FIRST_LOG_VARIANCE = -6.0  # of latents before training: with that of a prior, 0, most of what is decoded is noise


class AutoencoderKL(nn.Module, Network):
    """(B, in_channels, H, W) in [-1, 1] <-> (B, latent_channels, H / factor, W / factor).

    channels: the width of each level, each after the first half as large as the one before. quant_conv: a 1x1
    convolution behind the encoder and one before the decoder. As a network under training it gives two outputs, the
    reconstruction and the divergence of its latents (see forward), which variance=learned keeps apart.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        latent_channels: int,
        channels: Sequence[int],
        blocks_per_level: int,
        norm_num_groups: int,
        attention: bool,
        quant_conv: bool,
        num_classes: int | None = None,  # of the data; it is told of none
    ) -> None:
        super().__init__()
        if out_channels != 2 * in_channels:
            raise ValueError("model=autoencoder_kl draws nothing, and is trained by itself: experiment=autoencoder")
        if isinstance(channels, int) or any(width % norm_num_groups for width in channels):
            raise ValueError(
                f"model.channels must be a list of multiples of model.norm_num_groups={norm_num_groups}, one for each "
                f"level, got {channels}"
            )
        self.in_channels, self.latent_channels = in_channels, latent_channels
        self.factor = 2 ** (len(channels) - 1)
        options = BlockOptions(0, norm_num_groups, 0.0, last_gain=1.0)
        self.encoder = Encoder(in_channels, 2 * latent_channels, channels, blocks_per_level, attention, options)
        self.decoder = Decoder(latent_channels, in_channels, channels, blocks_per_level + 1, attention, options)
        self.quant_conv = conv(2 * latent_channels, 2 * latent_channels, 1) if quant_conv else nn.Identity()
        last: Any = self.quant_conv if quant_conv else self.encoder.conv_out
        nn.init.constant_(last.bias[latent_channels:], _FIRST_LOG_VARIANCE)
        self.post_quant_conv = conv(latent_channels, latent_channels, 1) if quant_conv else nn.Identity()

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x), each (B, latent_channels, H / factor, W / factor)."""
        mean, log_variance = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(*_LOG_VARIANCES)

    def encode(self, x: Tensor) -> Tensor:
        """The mean of q(z | x)."""
        return self.moments(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))

    def forward(self, x: Tensor, time: Tensor, cond: Cond = None) -> Tensor:
        """(B, 2 in_channels, H, W): the reconstruction from z = mean + std noise, and as many channels that hold
        KL(q(z | x) || N(0, 1)) in nats, divided by the dimensions of x.

        cond["noise"]: standard normal, of x's shape, of which as much as z takes is used; without it z is the mean.
        time is unused.
        """
        mean, log_variance = self.moments(x)
        z, noise = mean, (cond or {}).get("noise")
        if noise is not None:
            z = z + (log_variance / 2).exp() * noise.flatten(1)[:, : z[0].numel()].view_as(z).to(z.dtype)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).float().flatten(1).sum(1) / x[0].numel()
        out = self.decode(z)
        return torch.cat([out, kl.to(out.dtype).view(-1, 1, 1, 1).expand_as(out)], dim=1)

    def check_input(self, shape: Sequence[int]) -> None:
        _, height, width = shape
        if height % self.factor or width % self.factor:
            raise ValueError(f"model.channels: images of {height}x{width} cannot be made {self.factor} times smaller")
        if self.latent_channels > self.in_channels * self.factor**2:
            raise ValueError(f"model.latent_channels={self.latent_channels} make latents larger than the image")

    def diffusers_config(self) -> dict[str, Any]:
        raise ValueError("an autoencoder is no UNet2DModel")


class Block(Checkpointed):
    """norm, SiLU, conv, twice, + input."""

    def __init__(self, in_channels: int, out_channels: int, options: BlockOptions) -> None:
        super().__init__()
        self.norm1, self.norm2 = options.norm(in_channels), options.norm(out_channels)
        self.conv1, self.conv2 = conv(in_channels, out_channels), conv(out_channels, out_channels)
        self.conv_shortcut = conv(in_channels, out_channels, 1) if in_channels != out_channels else None

    def compute(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Middle(nn.Module):
    """The smallest level: two blocks, and between them attention."""

    def __init__(self, channels: int, attention: bool, options: BlockOptions) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Block(channels, channels, options) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(channels, options)] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Level(nn.Module):
    """Blocks at one size, then the way to the next."""

    def __init__(self, before: int, channels: int, blocks: int, options: BlockOptions, resampled: str | None) -> None:
        super().__init__()
        widths = [before, *[channels] * blocks]
        self.resnets = nn.ModuleList(Block(a, b, options) for a, b in pairwise(widths))
        self.downsamplers = nn.ModuleList([Downsample(channels)] if resampled == "down" else [])
        self.upsamplers = nn.ModuleList([Upsample(channels)] if resampled == "up" else [])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resnets:
            x = block(x)
        for resample in (*self.downsamplers, *self.upsamplers):
            x = resample(x, x)
        return x


class Encoder(nn.Module):
    def __init__(
        self, before: int, after: int, channels: Sequence[int], blocks: int, attention: bool, options: BlockOptions
    ) -> None:
        super().__init__()
        self.conv_in = conv(before, channels[0])
        self.down_blocks = _levels([channels[0], *channels], blocks, options, "down")
        self.mid_block = Middle(channels[-1], attention, options)
        self.conv_norm_out, self.conv_out = options.norm(channels[-1]), conv(channels[-1], after)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(
        self, before: int, after: int, channels: Sequence[int], blocks: int, attention: bool, options: BlockOptions
    ) -> None:
        super().__init__()
        self.conv_in = conv(before, channels[-1])
        self.mid_block = Middle(channels[-1], attention, options)
        self.up_blocks = _levels([channels[-1], *reversed(channels)], blocks, options, "up")
        self.conv_norm_out, self.conv_out = options.norm(channels[0]), conv(channels[0], after)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def _levels(widths: Sequence[int], blocks: int, options: BlockOptions, way: str) -> nn.ModuleList:
    last = len(widths) - 2
    pairs = enumerate(pairwise(widths))
    return nn.ModuleList(Level(a, b, blocks, options, way if i < last else None) for i, (a, b) in pairs)
