"""What only a data set can know of its keywords: what it has, how its files relate to them, what fits in memory.

What a single value may be, whatever the set (a whole number, a path, a choice), stands in config/knobs.py alone and is
checked before a command begins. A caller from Python who breaks that gets whatever error it leads to, never a set that
is not what was asked for.
"""

from ddpm_cli.errors import UserError

MAX_IN_MEMORY = 8 * 2**30  # bytes; sets that are computed rather than stored must fit beside the training


def check_channels(channels: int) -> None:
    """The sets here are images, grey or RGB; knobs.py allows more, since sets of other kinds have other channels."""
    if channels not in (1, 3):
        raise UserError(f"dataset.channels must be 1 (grey) or 3 (RGB), got {channels!r}")


def check_split(split: str, choices: tuple[str, ...]) -> None:
    """Refuse a split that other sets have and this one has not."""
    if split not in choices:
        raise UserError(f"dataset.split must be one of {', '.join(choices)}, got {split!r}")


def check_num_classes(given: int | None, found: int, *, what: str) -> bool:
    """Whether the labels are kept: all classes (their number, or null) or none of them (0)."""
    if given is None or given == found:
        return found > 0
    if given == 0:
        return False
    rule = f"{found} ({what} has so many), or 0 to leave the labels out" if found else f"0 ({what} has no classes)"
    raise UserError(f"dataset.num_classes must be {rule}, got {given!r}")


def check_in_memory(num_items: int, item_bytes: int, smaller: str = "dataset.image_size") -> None:
    """Refuse a computed set that would not fit in memory."""
    if num_items * item_bytes > MAX_IN_MEMORY:
        raise UserError(
            f"dataset: {num_items} items of {item_bytes} bytes are {num_items * item_bytes / 2**30:.0f} GiB and this "
            f"set is kept in memory ({MAX_IN_MEMORY // 2**30} GiB at most); choose a smaller {smaller}"
        )
