"""Fine-tuning: the weights of a trained network for one that differs from it where it meets its data.

Fitted are its ends: the rows of the class embedding, and the channels of the first and the last convolution. (The side
of an image shapes no weight.) All else must be the same, as load_weights sees to.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ddpm_cli.models.lora import is_adapter

log = logging.getLogger("ddpm_cli")
_CLASSES = "class_embedding.weight"
_VECTOR = ("vector_embedding.weight", "vector_embedding.bias")
_FIRST, _LAST = ("conv_in.weight",), ("conv_out.weight", "conv_out.bias")
ENDS = (_CLASSES, *_FIRST, *_LAST)  # what may differ from the weights that a run started from, though it is frozen
Weights = dict[str, Tensor]


def transferred(
    network: nn.Module,
    saved: Weights,
    path: Path | str,
    old_names: Sequence[str] = (),
    names: Sequence[str] = (),
    conditions: tuple[int, int] = (0, 0),
) -> Weights:
    """`saved` with its ends fitted to the network, and the network's own adapters, for load_weights; what was done is
    told line by line.

    old_names, names: of the classes, where they are known: a class of the same name keeps its row. Another begins as
    the null label, or, where that has no row, as the mean of the classes. conditions: how many channels of the first
    convolution, the last of them, are a condition's, in the file and here; other ones begin without effect.
    """
    state, told = network.state_dict(), dict[str, str]()
    mine = {name: weight for name, weight in state.items() if not is_adapter(name)}
    fitted = {**saved, **{name: weight for name, weight in state.items() if is_adapter(name)}}
    if _CLASSES in saved and _CLASSES not in mine:
        del fitted[_CLASSES]
        told[_CLASSES] = "left out"
    if _CLASSES in mine and _CLASSES not in saved:
        fitted[_CLASSES] = mine[_CLASSES]
        told[_CLASSES] = "fresh, as the file knows no classes"
    if _CLASSES in mine and _CLASSES in saved and mine[_CLASSES].shape[1:] == saved[_CLASSES].shape[1:]:
        fitted[_CLASSES], done = _rows(mine[_CLASSES], saved[_CLASSES], network, old_names, names)
        told |= {} if done is None else {_CLASSES: done}
    for name in _VECTOR:
        old, fresh = fitted.pop(name, None), mine.get(name)
        if fresh is not None:
            same = old is not None and old.shape == fresh.shape
            silent = _VECTOR[1] in mine  # EDM2's, which has no bias, is of unit magnitude: it cannot begin as nothing
            new = torch.zeros_like(fresh) if silent else fresh
            fitted[name] = old if old is not None and same else new
            told |= {} if same else {name: "begins without effect" if silent else "begins anew"}
    for name in (*_FIRST, *_LAST):
        old, fresh = saved.get(name), mine.get(name)
        if old is None or fresh is None or old.shape == fresh.shape:
            continue
        if (resized := _channels(name, fresh, old, network, conditions)) is not None:
            fitted[name] = resized
            how = "a condition's channels begin without effect" if any(conditions) else "by the mean over channels"
            told[name] = f"{tuple(old.shape)} to {tuple(fresh.shape)}, {how}"
    kept = [name for name in mine.keys() & saved.keys() - told.keys() if saved[name].shape == mine[name].shape]
    log.info("%s: %d of %d tensors are taken as they are", path, len(kept), len(mine))
    still = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    for name, done in told.items():
        log.info("  %s: %s%s", name, done, "; it is frozen, and stays so" if name in still else "")
    return fitted


def _rows(
    fresh: Tensor, old: Tensor, network: nn.Module, old_names: Sequence[str], names: Sequence[str]
) -> tuple[Tensor, str | None]:
    """The rows of the class embedding, and what was done; None if all are as they were."""
    classes: int = network.num_classes  # type: ignore[assignment]
    null = len(fresh) > classes  # whether the null label has a row, its last, here; and in the file
    known = len(old_names) == len(old) - 1 or len(old_names) == len(old)
    had_null = null if not known else len(old) > len(old_names)
    count = len(old) - int(had_null)
    if known and len(names) == classes:
        places = [old_names.index(name) if name in old_names else None for name in names]
    else:
        places = list(range(classes)) if classes == count else [None] * classes
    start = old[-1] if had_null else old.mean(0)
    rows = [start if place is None else old[place] for place in places] + ([start] if null else [])
    kept = sum(place is not None for place in places)
    if places == list(range(count)) and null == had_null:
        return old, None
    begin = "the null label" if had_null else "the classes' mean"
    return torch.stack(rows), f"{count} classes to {classes}: {kept} keep their row, the others begin as {begin}"


def _channels(
    name: str, fresh: Tensor, old: Tensor, network: nn.Module, conditions: tuple[int, int] = (0, 0)
) -> Tensor | None:
    """The first or last convolution for another number of channels: so that a grey image in colour gives what the grey
    one gave, and the other way round. None where more than the channels differ.

    What a channel has is a block: the pixels of a patch; and of the last convolution, one of each of its outputs (the
    prediction, and the variance where it is learned).
    """
    before, after = conditions
    channels: int = network.in_channels - after  # type: ignore[assignment, operator]
    outputs: int = network.out_channels // channels  # type: ignore[assignment, operator]
    if name in _FIRST:
        pixels = fresh.shape[1] // (channels + after)
        if fresh.shape[0] != old.shape[0] or fresh.shape[2:] != old.shape[2:] or old.shape[1] % pixels:
            return None
        by_channel = old.unflatten(1, (-1, pixels))[:, : old.shape[1] // pixels - before]
        if by_channel.shape[1] != channels:
            mean = by_channel.mean(1, keepdim=True) * (by_channel.shape[1] / channels)
            by_channel = mean.expand(-1, channels, *mean.shape[2:])
        nothing = by_channel.new_zeros(len(old), after, *by_channel.shape[2:])
        return torch.cat([by_channel, nothing], 1).flatten(1, 2)
    if name in _LAST:
        pixels = len(fresh) // (channels * outputs)
        if fresh.shape[1:] != old.shape[1:] or len(old) % (pixels * outputs):
            return None
        mean = old.unflatten(0, (outputs, -1, pixels)).mean(1, keepdim=True)
        return mean.expand(-1, channels, *mean.shape[2:]).flatten(0, 2).clone()
    return None
