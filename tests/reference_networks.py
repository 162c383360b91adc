"""The U-Nets of pytorch_diffusion (Ho et al.) and of improved- and guided-diffusion, written out by their papers' and
programs' names, slowly and plainly: what key maps are held against."""

import math

import torch
import torch.nn.functional as F
from torch import nn

# OpenAI's


class OpenAIBlock(nn.Module):
    def __init__(self, c_in, c_out, emb, scale_shift, resample=None):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(nn.GroupNorm(32, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, c_out * (2 if scale_shift else 1)))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, c_out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(c_out, c_out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, emb):
        h = self.in_layers[1](self.in_layers[0](x))
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        elif self.resample == "up":
            h, x = F.interpolate(h, scale_factor=2), F.interpolate(x, scale_factor=2)
        h = self.in_layers[2](h)
        emb = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = emb.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            h = self.out_layers[3](self.out_layers[1](h))
        else:
            h = self.out_layers(h + emb)
        return self.skip_connection(x) + h


class OpenAIAttention(nn.Module):
    def __init__(self, width, heads, new_order):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = nn.GroupNorm(32, width)
        self.qkv, self.proj_out = nn.Conv1d(width, 3 * width, 1), nn.Conv1d(width, width, 1)

    def forward(self, x, emb):
        batch, width, *size = x.shape
        x = x.flatten(2)
        qkv, each = self.qkv(self.norm(x)), width // self.heads
        if self.new_order:
            q, k, v = (part.reshape(batch * self.heads, each, -1) for part in qkv.chunk(3, dim=1))
        else:
            q, k, v = qkv.reshape(batch * self.heads, 3 * each, -1).split(each, dim=1)
        weight = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / math.sqrt(each), dim=-1)
        out = torch.einsum("bts,bcs->bct", weight, v).reshape(batch, width, -1)
        return (x + self.proj_out(out)).unflatten(2, size)


class OpenAIDown(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x, emb):
        return self.op(x)


class OpenAIUp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x, emb):
        return self.conv(F.interpolate(x, scale_factor=2))


class OpenAIUNet(nn.Module):
    def __init__(self, channels, mult, blocks, attend_at, out=3, classes=None, heads=4, head_channels=-1,
                 scale_shift=True, updown=False, new_order=False):  # fmt: skip
        super().__init__()
        self.channels, emb = channels, 4 * channels

        def block(c_in, c_out, resample=None):
            return OpenAIBlock(c_in, c_out, emb, scale_shift, resample)

        def attention(width):
            return OpenAIAttention(width, heads if head_channels == -1 else width // head_channels, new_order)

        self.time_embed = nn.Sequential(nn.Linear(channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        if classes:
            self.label_emb = nn.Embedding(classes, emb)
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, channels, 3, padding=1)])])
        kept, width, ds = [channels], channels, 1
        for level, m in enumerate(mult):
            for _ in range(blocks):
                layers = [block(width, m * channels)]
                width = m * channels
                layers += [attention(width)] if ds in attend_at else []
                self.input_blocks.append(nn.ModuleList(layers))
                kept.append(width)
            if level < len(mult) - 1:
                self.input_blocks.append(nn.ModuleList([block(width, width, "down") if updown else OpenAIDown(width)]))
                kept.append(width)
                ds *= 2
        self.middle_block = nn.ModuleList([block(width, width), attention(width), block(width, width)])
        self.output_blocks = nn.ModuleList()
        for level, m in reversed(list(enumerate(mult))):
            for i in range(blocks + 1):
                layers = [block(width + kept.pop(), m * channels)]
                width = m * channels
                layers += [attention(width)] if ds in attend_at else []
                if level and i == blocks:
                    layers.append(block(width, width, "up") if updown else OpenAIUp(width))
                    ds //= 2
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))

    def forward(self, x, time, labels=None):
        half = self.channels // 2
        angles = time.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half).float() / half)
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        if labels is not None:
            emb = emb + self.label_emb(labels)
        kept, h = [], x
        for layers in self.input_blocks:
            for layer in layers:
                h = layer(h) if isinstance(layer, nn.Conv2d) else layer(h, emb)
            kept.append(h)
        for layer in self.middle_block:
            h = layer(h, emb)
        for layers in self.output_blocks:
            h = torch.cat([h, kept.pop()], dim=1)
            for layer in layers:
                h = layer(h, emb)
        return self.out(h)


# Ho's


def norm(width):
    return nn.GroupNorm(32, width, eps=1e-6)


class HoBlock(nn.Module):
    def __init__(self, c_in, c_out, emb):
        super().__init__()
        self.norm1, self.conv1 = norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.temb_proj = nn.Linear(emb, c_out)
        self.norm2, self.conv2 = norm(c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, temb):
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if x.shape != h.shape else x) + h


class HoAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        weight = torch.softmax(torch.bmm(q.transpose(1, 2), k) * x.shape[1] ** -0.5, dim=2)
        return x + self.proj_out(torch.bmm(v, weight.transpose(1, 2)).reshape(x.shape))


class HoLevel(nn.Module):
    def __init__(self, pairs, emb, attends):
        super().__init__()
        self.block = nn.ModuleList([HoBlock(*pair, emb) for pair in pairs])
        self.attn = nn.ModuleList([HoAttention(pair[1]) for pair in pairs] if attends else [])


class Conv(nn.Module):
    def __init__(self, width, **options):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, **options)


class HoUNet(nn.Module):
    def __init__(self, ch, ch_mult, blocks, attends):
        super().__init__()
        self.ch, emb, count = ch, 4 * ch, len(ch_mult)
        widths = [ch * m for m in ch_mult]
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(ch, emb), nn.Linear(emb, emb)])
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down, self.up, before = nn.ModuleList(), nn.ModuleList(), [ch, *widths[:-1]]
        for level, width in enumerate(widths):
            made = HoLevel([(before[level] if i == 0 else width, width) for i in range(blocks)], emb, level in attends)
            if level < count - 1:
                made.downsample = Conv(width, stride=2)
            self.down.append(made)
        self.mid = nn.Module()
        self.mid.block_1, self.mid.block_2 = (HoBlock(widths[-1], widths[-1], emb) for _ in range(2))
        self.mid.attn_1 = HoAttention(widths[-1])
        for level, width in enumerate(widths):
            below = widths[min(level + 1, count - 1)]
            skips = [*[width] * blocks, before[level]]
            pairs = [((below if i == 0 else width) + skip, width) for i, skip in enumerate(skips)]
            made = HoLevel(pairs, emb, level in attends)
            if level:
                made.upsample = Conv(width, padding=1)
            self.up.append(made)
        self.norm_out, self.conv_out = norm(ch), nn.Conv2d(ch, 3, 3, padding=1)

    def forward(self, x, time):
        half = self.ch // 2
        angles = time.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half).float() / (half - 1))
        temb = self.temb.dense[0](torch.cat([angles.sin(), angles.cos()], dim=1))
        temb = self.temb.dense[1](F.silu(temb))
        kept = [self.conv_in(x)]
        for level, down in enumerate(self.down):
            for i, block in enumerate(down.block):
                h = block(kept[-1], temb)
                kept.append(down.attn[i](h) if len(down.attn) else h)
            if level < len(self.down) - 1:
                kept.append(down.downsample.conv(F.pad(kept[-1], (0, 1, 0, 1))))
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(kept[-1], temb)), temb)
        for level, up in reversed(list(enumerate(self.up))):
            for i, block in enumerate(up.block):
                h = block(torch.cat([h, kept.pop()], dim=1), temb)
                h = up.attn[i](h) if len(up.attn) else h
            if level:
                h = up.upsample.conv(F.interpolate(h, scale_factor=2))
        return self.conv_out(F.silu(self.norm_out(h)))
