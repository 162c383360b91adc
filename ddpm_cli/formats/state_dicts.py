"""Weights by the names of Ho's and OpenAI's programs, brought to ours."""

from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_cli.formats.flags import LAYOUT
from ddpm_cli.formats.tensors import read_tensors
from ddpm_cli.run_dir.checkpoint import Weights

_ORDER = "new_attention_order"
_BLOCK = {
    "openai": {
        "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
        "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
    },
    "ho": {
        "norm1": "norm1", "conv1": "conv1", "temb_proj": "time_emb_proj", "norm2": "norm2", "conv2": "conv2",
        "nin_shortcut": "conv_shortcut",
    },
}  # fmt: skip
_ENDS = {
    "openai": {
        "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
        "label_emb": "class_embedding", "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
    },
    "ho": {
        "temb.dense.0": "time_embedding.linear_1", "temb.dense.1": "time_embedding.linear_2", "conv_in": "conv_in",
        "norm_out": "conv_norm_out", "conv_out": "conv_out",
    },
}  # fmt: skip


def read(file: Path, config: dict[str, Any]) -> tuple[Weights, dict[str, Any]]:
    """The weights by our names, and the configuration without what was of theirs alone."""
    model = config["model"]
    layout = model[LAYOUT]
    blocks, attentions, others = {"openai": _openai, "ho": _ho}[layout](model)
    names = {**_ENDS[layout], **others}
    for theirs, ours in blocks.items():
        names |= {f"{theirs}.{part}": f"{ours}.{own}" for part, own in _BLOCK[layout].items()}
    weights: Weights = {}
    for key, tensor in read_tensors(file).items():
        place, _, leaf = key.rpartition(".")
        block, _, part = place.rpartition(".")
        if block in attentions:
            weights |= {f"{attentions[block]}.{name}.{leaf}": t for name, t in _attention(part, tensor, model).items()}
        else:  # what has no counterpart keeps its name, and is told of as what does not fit
            weights[f"{names.get(place, place)}.{leaf}"] = tensor
    kept = {key: value for key, value in model.items() if key not in (LAYOUT, _ORDER)}
    return weights, {**config, "model": kept}


def _attention(part: str, tensor: Tensor, model: dict[str, Any]) -> dict[str, Tensor]:
    """The linear layers that a layer of theirs, a convolution of one pixel, is made of."""
    flat = tensor.flatten(1) if tensor.ndim > 1 else tensor
    if part != "qkv":
        linear = {"norm": "group_norm", "proj_out": "to_out.0", "q": "to_q", "k": "to_k", "v": "to_v"}
        return {linear.get(part, part): flat}
    width = len(flat) // 3
    heads = model["num_heads"] or width // model["head_channels"]
    # Rows: all queries, keys, values of all heads; in the old order those of each head by itself.
    split = flat.unflatten(0, (3, width) if model[_ORDER] else (heads, 3, width // heads))
    parts = split if model[_ORDER] else split.transpose(0, 1).flatten(1, 2)
    return {name: parts[i].contiguous() for i, name in enumerate(("to_q", "to_k", "to_v"))}


Names = dict[str, str]  # theirs -> ours


def _openai(model: dict[str, Any]) -> tuple[Names, Names, Names]:
    """Residual blocks, attentions and convolutions that resample, in the order in which their list has them."""
    blocks = {"middle_block.0": "mid_block.resnets.0", "middle_block.2": "mid_block.resnets.1"}
    attentions, convs = {"middle_block.1": "mid_block.attentions.0"}, Names()
    count, per_level, inside = len(model["channel_mult"]), model["blocks_per_level"], model["attention_levels"]
    index = 1
    for level in range(count):
        for block in range(per_level):
            blocks[f"input_blocks.{index}.0"] = f"down_blocks.{level}.resnets.{block}"
            if level in inside:
                attentions[f"input_blocks.{index}.1"] = f"down_blocks.{level}.attentions.{block}"
            index += 1
        if level < count - 1:
            ours = f"down_blocks.{level}.downsamplers.0"
            blocks[f"input_blocks.{index}.0"] = ours
            convs[f"input_blocks.{index}.0.op"] = f"{ours}.conv"
            index += 1
    index = 0
    for up, level in enumerate(reversed(range(count))):
        for block in range(per_level + 1):
            blocks[f"output_blocks.{index}.0"] = f"up_blocks.{up}.resnets.{block}"
            if level in inside:
                attentions[f"output_blocks.{index}.1"] = f"up_blocks.{up}.attentions.{block}"
            if block == per_level and level > 0:
                theirs = f"output_blocks.{index}.{2 if level in inside else 1}"
                blocks[theirs] = f"up_blocks.{up}.upsamplers.0"
                convs[f"{theirs}.conv"] = f"up_blocks.{up}.upsamplers.0.conv"
            index += 1
    return blocks, attentions, convs


def _ho(model: dict[str, Any]) -> tuple[Names, Names, Names]:
    """The same by their levels, of which 0 is the full resolution on both ways."""
    blocks = {f"mid.block_{i + 1}": f"mid_block.resnets.{i}" for i in range(2)}
    attentions, convs = {"mid.attn_1": "mid_block.attentions.0"}, Names()
    count, per_level = len(model["channel_mult"]), model["blocks_per_level"]
    for level in range(count):
        for theirs, ours, number in (("down", level, per_level), ("up", count - 1 - level, per_level + 1)):
            for block in range(number):
                blocks[f"{theirs}.{level}.block.{block}"] = f"{theirs}_blocks.{ours}.resnets.{block}"
                attentions[f"{theirs}.{level}.attn.{block}"] = f"{theirs}_blocks.{ours}.attentions.{block}"
            convs[f"{theirs}.{level}.{theirs}sample.conv"] = f"{theirs}_blocks.{ours}.{theirs}samplers.0.conv"
    return blocks, attentions, convs
