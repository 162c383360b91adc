"""DiT, the diffusion transformer (Peebles and Xie 2023), with adaLN-Zero blocks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_cli.models.attention import attend
from ddpm_cli.models.checkpointed import Checkpointed, checkpoint_blocks
from ddpm_cli.models.conditioning import ClassEmbedding, Cond, Conditional, TimeEmbedding, linear, time_features

TIME_FEATURES = 256


class DiTBlock(Checkpointed):
    """Attention and a two-layer network, each scaled, shifted and gated by the condition; starts as the identity."""

    def __init__(self, channels: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(channels, 3 * channels)
        self.proj = linear(channels, channels)
        self.mlp_1 = linear(channels, mlp_ratio * channels)
        self.mlp_2 = linear(mlp_ratio * channels, channels)
        self.modulation = linear(channels, 6 * channels, gain=0.0)

    def compute(self, x: Tensor, c: Tensor) -> Tensor:
        """x: (B, N, C) tokens; c: (B, C) time and class, already through SiLU -> (B, N, C)."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(c)[:, None].chunk(6, dim=2)  # (B, 1, C)
        qkv = self.qkv(modulated(x, shift_1, scale_1)).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, C / heads)
        x = torch.addcmul(x, gate_1, self.proj(attend(q, k, v).transpose(1, 2).flatten(2)))
        hidden = F.gelu(self.mlp_1(modulated(x, shift_2, scale_2)), approximate="tanh")
        return torch.addcmul(x, gate_2, self.mlp_2(hidden))


class DiT(Conditional):
    """A transformer over patches of patch_size x patch_size pixels, for images of any size that patches fill.

    routing: the share of an image's tokens, drawn anew each time, that in training pass by the blocks in the middle
    (TREAD, Krause et al. 2025): all but the first and the last sixth of them, of each at least one.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        num_classes: int | None,
        class_conditional: bool,
        channels: int,
        depth: int,
        heads: int,
        patch_size: int,
        mlp_ratio: int,
        routing: float = 0.0,
        checkpointing: bool = False,
        vector_dim: int = 0,
    ) -> None:
        super().__init__(in_channels, out_channels, num_classes=num_classes, class_conditional=class_conditional)
        if routing and depth < 3:
            raise ValueError(f"model.routing={routing:g} passes by the middle of at least 3 blocks, got {depth}")
        self.routing = routing
        if not isinstance(channels, int):
            raise ValueError(f"model.channels must be one number for a transformer, got {channels}")
        check_settings(channels, depth, heads)
        self.channels, self.patch_size = channels, patch_size
        self.patch_in = linear(in_channels * patch_size**2, channels)
        self.time_embedding = TimeEmbedding(TIME_FEATURES, channels)
        if class_conditional:
            self.class_embedding = ClassEmbedding(self.num_classes, channels)
        for layer in (self.time_embedding.linear_1, self.time_embedding.linear_2, self.class_embedding):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02)
        self.blocks = nn.ModuleList(DiTBlock(channels, heads, mlp_ratio) for _ in range(depth))
        checkpoint_blocks(self, checkpointing)
        self.modulation = linear(channels, 2 * channels, gain=0.0)
        self.patch_out = linear(channels, out_channels * patch_size**2, gain=0.0)
        self.vector_embedding = linear(vector_dim, channels) if vector_dim else None

    def check_input(self, shape: Sequence[int]) -> None:
        """Raise ValueError unless patches fill images of `shape` (..., H, W)."""
        height, width = shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"model.patch_size must divide the images' height and width, got {self.patch_size} for "
                f"{height}x{width}; choose another patch size or another dataset.image_size"
            )

    def forward(self, x: Tensor, time: Tensor, cond: Cond = None) -> Tensor:
        """x: (B, in_channels, H, W), time: (B,) -> (B, out_channels, H, W)."""
        c = self.time_embedding(time_features(time, TIME_FEATURES).to(self.patch_in.weight.dtype))
        if self.class_conditional:
            c = c + self.class_vector(cond, x.shape[0], x.device)
        c = self.with_vector(c, cond)
        c = F.silu(c)
        patches = F.pixel_unshuffle(x, self.patch_size)  # (B, in_channels * patch_size ** 2, h, w)
        h, w = patches.shape[2:]
        tokens = self.patch_in(patches.flatten(2).transpose(1, 2))
        tokens = tokens + positions(h, w, self.channels, x.device).to(tokens.dtype)
        tokens = self._through_blocks(tokens, c)
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=2)
        patches = self.patch_out(modulated(tokens, shift, scale)).transpose(1, 2).unflatten(2, (h, w))
        return F.pixel_shuffle(patches, self.patch_size)

    def _through_blocks(self, tokens: Tensor, c: Tensor) -> Tensor:
        """tokens: (B, N, C); c: (B, C), as the blocks take it -> (B, N, C)."""
        blocks = list(self.blocks)
        ends = max(1, len(blocks) // 6) if self.training and self.routing else len(blocks)
        for block in blocks[:ends]:
            tokens = block(tokens, c)
        if ends == len(blocks):
            return tokens
        kept = max(1, round(tokens.shape[1] * (1 - self.routing)))
        # From the generators that dropout draws from, so that it is a function of seed and step.
        order = torch.rand(tokens.shape[:2], device=tokens.device).argsort(dim=1)[:, :kept, None]
        index = order.expand(-1, -1, tokens.shape[2])
        some = tokens.gather(1, index)
        for block in blocks[ends:-ends]:
            some = block(some, c)
        tokens = tokens.scatter(1, index, some.to(tokens.dtype))
        for block in blocks[-ends:]:
            tokens = block(tokens, c)
        return tokens


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The layer-normalised tokens (B, N, C), scaled by 1 + scale and shifted, both (B, 1, C)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def positions(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """(height * width, channels): sines and cosines of the column in the first half of the channels, then the row's."""
    columns = time_features(torch.arange(width, device=device), channels // 2).repeat(height, 1)
    rows = time_features(torch.arange(height, device=device), channels // 2).repeat_interleave(width, dim=0)
    return torch.cat([columns, rows], dim=1)


def check_settings(channels: int, depth: int, heads: int) -> None:
    """Raise ValueError for a setting that makes no transformer, with its rule and its remedy."""
    if channels < 8 or channels % 4:
        raise ValueError(f"model.channels must be a multiple of 4 and at least 8, got {channels}; 128 to 384 are usual")
    if heads < 1 or channels % heads:
        raise ValueError(f"model.heads must divide model.channels={channels}, got {heads}; channels / 64 is usual")
    if depth < 1:  # would be silently no transformer at all
        raise ValueError(f"model.depth must be at least 1, got {depth}")
