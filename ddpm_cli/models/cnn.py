"""A plain convolutional encoder-decoder, told the time and the class: the smallest baseline."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_cli.models.conditioning import ClassEmbedding, Cond, Conditional, TimeEmbedding, linear, time_features


class CNN(Conditional):
    """Convolutions of stride 2 down, transposed ones back up, ReLU between; no skips, no normalisation.

    Takes images of any size: odd ones are rounded up on the way down and met again on the way up.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        num_classes: int | None,
        class_conditional: bool,
        channels: Sequence[int],
        vector_dim: int = 0,
    ) -> None:
        super().__init__(in_channels, out_channels, num_classes=num_classes, class_conditional=class_conditional)
        if isinstance(channels, int):
            raise ValueError(f"model.channels must be a list of widths for this network, got {channels}; e.g. [64,128]")
        if any(width < 4 or width % 2 for width in channels):
            raise ValueError(
                f"model.channels must hold one even width >= 4 for each halving, got {list(channels)}; e.g. [64,128]"
            )
        self.channels = channels[0]
        emb_channels = 4 * channels[0]
        self.time_embedding = TimeEmbedding(channels[0], emb_channels)
        if class_conditional:
            self.class_embedding = ClassEmbedding(self.num_classes, emb_channels)
        befores = [in_channels, *channels[:-1]]
        self.down = nn.ModuleList(
            nn.Conv2d(before, width, 3, stride=2, padding=1) for before, width in zip(befores, channels, strict=True)
        )
        self.emb_proj = nn.ModuleList(linear(emb_channels, width) for width in channels)
        afters = [out_channels, *channels[:-1]]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(width, after, 3, stride=2, padding=1)
            for width, after in reversed(list(zip(channels, afters, strict=True)))
        )
        self.vector_embedding = linear(vector_dim, emb_channels) if vector_dim else None

    def forward(self, x: Tensor, time: Tensor, cond: Cond = None) -> Tensor:
        """x: (B, in_channels, H, W), time: (B,) -> (B, out_channels, H, W)."""
        emb = self.time_embedding(time_features(time, self.channels).to(x.dtype))
        if self.class_conditional:
            emb = emb + self.class_vector(cond, x.shape[0], x.device)
        emb = self.with_vector(emb, cond)
        emb = F.silu(emb)
        sizes = []
        for down, project in zip(self.down, self.emb_proj, strict=True):
            sizes.append(x.shape[2:])
            x = F.relu(down(x) + project(emb)[:, :, None, None])
        for i, up in enumerate(self.up):
            x = up(x if i == 0 else F.relu(x), output_size=sizes.pop())
        return x
