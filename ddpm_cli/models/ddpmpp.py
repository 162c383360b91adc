"""DDPM++, the U-Net of Song et al. 2021 (appendix H), in the form that EDM trains (Karras et al. 2022, appendix F)."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_cli.models.blocks import BlockOptions
from ddpm_cli.models.checkpointed import checkpoint_blocks
from ddpm_cli.models.conditioning import ClassEmbedding, Cond, TimeEmbedding, linear, time_features
from ddpm_cli.models.trunk import Trunk, checked_plan


class DDPMpp(Trunk):
    """A U-Net of residual blocks that keep their variance, the condition joining the time before its two layers.

    The null label embeds to zero, and so do missing augmentation labels.
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
        augment_dim: int,
        checkpointing: bool = False,
        vector_dim: int = 0,
    ) -> None:
        levels = (channels, channel_mult, blocks_per_level, attention_levels)
        plan = checked_plan(*levels, first=channels, resblock_updown=True, attend_once_up=True)
        options = BlockOptions(
            4 * channels,
            plan.groups,
            dropout,
            skip_scale=math.sqrt(0.5),
            resample_shortcut=True,
            last_gain=1e-5,
            attention_gain=math.sqrt(0.2),
        )
        super().__init__(
            plan, options, in_channels, out_channels, num_classes=num_classes, class_conditional=class_conditional
        )
        checkpoint_blocks(self, checkpointing)
        self.augment_dim = augment_dim
        self.time_embedding = TimeEmbedding(channels, options.emb_channels)
        if class_conditional:
            self.class_embedding = ClassEmbedding(self.num_classes, channels, learned_null=False)
            nn.init.xavier_uniform_(self.class_embedding.weight, math.sqrt(self.num_classes))
        self.augment_embedding = linear(augment_dim, channels, bias=False) if augment_dim else None
        self.vector_embedding = linear(vector_dim, channels) if vector_dim else None

    def forward(self, x: Tensor, time: Tensor, cond: Cond = None) -> Tensor:
        """x: (B, in_channels, H, W), time: (B,), here ln(sigma) / 4 -> (B, out_channels, H, W)."""
        features = time_features(time, self.plan.first).to(self.conv_in.weight.dtype)
        if self.class_conditional:
            features = features + self.class_vector(cond, x.shape[0], x.device)
        features = self.with_vector(features, cond)
        if self.augment_embedding is not None and cond and "augment" in cond:
            features = features + self.augment_embedding(cond["augment"].to(features.dtype))
        return self.walk(x, F.silu(self.time_embedding(features)))
