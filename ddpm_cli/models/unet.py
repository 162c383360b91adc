"""The U-Net of DDPM (Ho et al. 2020, appendix B) and, by its settings, of iDDPM (Nichol and Dhariwal 2021) and ADM."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.models.blocks import BlockOptions
from ddpm_cli.models.conditioning import ClassEmbedding, Cond, TimeEmbedding, time_features
from ddpm_cli.models.trunk import Trunk, checked_plan


class UNet(Trunk):
    """A U-Net whose weights diffusers' UNet2DModel loads as they stand, given `diffusers_config`."""

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
    ) -> None:
        plan = checked_plan(
            channels,
            channel_mult,
            blocks_per_level,
            attention_levels,
            dropout,
            head_channels,
            patch_size=patch_size,
            resblock_updown=resblock_updown,
        )
        emb_channels = 4 * plan.first
        super().__init__(
            plan,
            BlockOptions(emb_channels, plan.groups, dropout, head_channels, scale_shift_norm),
            in_channels,
            out_channels,
            num_classes=num_classes,
            class_conditional=class_conditional,
        )
        self.time_embedding = TimeEmbedding(plan.first, emb_channels)
        if class_conditional:
            self.class_embedding = ClassEmbedding(self.num_classes, emb_channels, learned_null=learned_null)

    def forward(self, x: Tensor, time: Tensor, cond: Cond = None) -> Tensor:
        """x: (B, in_channels, H, W), time: (B,) -> (B, out_channels, H, W)."""
        emb = self.time_embedding(time_features(time, self.plan.first).to(self.conv_in.weight.dtype))
        if self.class_conditional:
            emb = emb + self.class_vector(cond, x.shape[0], x.device)
        return self.walk(x, F.silu(emb))

    def diffusers_config(self) -> dict[str, Any]:
        """The settings with which diffusers' UNet2DModel is this network; leaving one out changes its output."""
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
            "attention_head_dim": self.options.head_channels,
            "attn_norm_num_groups": self.options.groups,
            "resnet_time_scale_shift": "scale_shift" if self.options.scale_shift_norm else "default",
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
            "norm_num_groups": self.options.groups,
            "dropout": self.options.dropout,
            "num_class_embeds": self.class_embedding.num_embeddings if self.class_embedding is not None else None,
        }

    def _block_type(self, direction: str, level: int) -> str:
        """diffusers' name: AttnDownBlock2D, DownBlock2D, ResnetDownsampleBlock2D and the same upwards."""
        if level in self.plan.attention_levels:
            return f"Attn{direction}Block2D"
        return f"Resnet{direction}sampleBlock2D" if self.plan.resblock_updown else f"{direction}Block2D"
