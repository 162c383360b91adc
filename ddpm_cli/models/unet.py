"""The U-Net of DDPM (Ho et al. 2020, appendix B) and, by its settings, of iDDPM (Nichol and Dhariwal 2021) and ADM."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.models.blocks import BlockOptions
from ddpm_cli.models.checkpointed import checkpoint_blocks
from ddpm_cli.models.conditioning import ClassEmbedding, Cond, TimeEmbedding, linear, time_features
from ddpm_cli.models.trunk import Trunk, checked_plan


class UNet(Trunk):
    """A U-Net whose weights diffusers' UNet2DModel loads as they stand, given `diffusers_config`.

    By the last six settings networks from elsewhere differ from the paper's; left out of one, its weights would fit and
    draw something else. Networks trained here have the defaults.
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
        patch_size: int = 1,
        head_channels: int | None = None,
        scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        learned_null: bool = True,
        checkpointing: bool = False,
        dims: int = 2,
        norm_num_groups: int | None = None,
        norm_eps: float = 1e-6,
        downsample_padding: int = 0,
        flip_sin_to_cos: bool = False,
        freq_shift: int = 1,
        num_heads: int | None = None,
        vector_dim: int = 0,
    ) -> None:
        levels = (channels, channel_mult, blocks_per_level, attention_levels)
        others: dict[str, Any] = {"resblock_updown": resblock_updown, "norm_num_groups": norm_num_groups}
        others["num_heads"] = num_heads
        plan = checked_plan(*levels, head_channels, patch_size=patch_size, **others)
        emb_channels = 4 * plan.first
        options = BlockOptions(
            emb_channels, plan.groups, dropout, head_channels, scale_shift_norm,
            dims=dims, eps=norm_eps, num_heads=num_heads, downsample_padding=downsample_padding,
        )  # fmt: skip
        super().__init__(
            plan, options, in_channels, out_channels, num_classes=num_classes, class_conditional=class_conditional
        )
        self.dims, self.flip_sin_to_cos, self.freq_shift = dims, flip_sin_to_cos, freq_shift
        checkpoint_blocks(self, checkpointing)
        self.time_embedding = TimeEmbedding(plan.first, emb_channels)
        if class_conditional:
            self.class_embedding = ClassEmbedding(self.num_classes, emb_channels, learned_null=learned_null)
        self.vector_embedding = linear(vector_dim, emb_channels) if vector_dim else None

    def forward(self, x: Tensor, time: Tensor, cond: Cond = None) -> Tensor:
        """x: (B, in_channels, H, W), or (B, in_channels, L) for dims=1, time: (B,) -> the same of out_channels."""
        features = time_features(
            time, self.plan.first, freq_shift=self.freq_shift, flip_sin_to_cos=self.flip_sin_to_cos
        )
        emb = self.time_embedding(features.to(self.conv_in.weight.dtype))
        if self.class_conditional:
            emb = emb + self.class_vector(cond, x.shape[0], x.device)
        emb = self.with_vector(emb, cond)
        return self.walk(x, F.silu(emb))

    def diffusers_config(self) -> dict[str, Any]:
        """The settings with which diffusers' UNet2DModel is this network; leaving one out changes its output."""
        if self.options.dims != 2:
            raise ValueError(f"model.dims={self.options.dims}: diffusers' UNet2DModel is of images")
        if self.plan.patch_size > 1:
            raise ValueError(f"model.patch_size={self.plan.patch_size}: diffusers' UNet2DModel knows no patches")
        resample = "resnet" if self.plan.resblock_updown else "conv"
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "block_out_channels": list(self.plan.widths),
            "layers_per_block": self.plan.blocks_per_level,
            "down_block_types": [self._block_type("Down", level) for level in range(len(self.plan.widths))],
            "up_block_types": [self._block_type("Up", level) for level in reversed(range(len(self.plan.widths)))],
            "downsample_type": resample,
            "upsample_type": resample,
            "attention_head_dim": self._head_channels(),
            "attn_norm_num_groups": self.options.groups,
            "resnet_time_scale_shift": "scale_shift" if self.options.scale_shift_norm else "default",
            "downsample_padding": self.options.downsample_padding,
            "flip_sin_to_cos": self.flip_sin_to_cos,
            "freq_shift": self.freq_shift,
            "norm_eps": self.options.eps,
            "norm_num_groups": self.options.groups,
            "dropout": self.options.dropout,
            "num_class_embeds": self.class_embedding.num_embeddings if self.class_embedding is not None else None,
        }

    def _head_channels(self) -> int | None:
        """Of a head of attention, at every width that has it; None: one head."""
        if self.options.num_heads is None:
            return self.options.head_channels
        widths = self.plan.attending
        if len(widths) > 1:
            told = f"model.num_heads={self.options.num_heads} for widths {widths}"
            raise ValueError(f"{told}: diffusers' UNet2DModel has heads of one width")
        return widths[0] // self.options.num_heads

    def _block_type(self, direction: str, level: int) -> str:
        """diffusers' name: AttnDownBlock2D, DownBlock2D, ResnetDownsampleBlock2D and the same upwards."""
        if level in self.plan.attention_levels:
            return f"Attn{direction}Block2D"
        return f"Resnet{direction}sampleBlock2D" if self.plan.resblock_updown else f"{direction}Block2D"
