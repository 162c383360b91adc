"""What the keywords of a data set must satisfy: each check tells the key, the value, the rule and the remedy."""

from pathlib import Path
from typing import Any

from ddpm_cli.errors import UserError

MAX_IMAGE_SIZE = 8192
MAX_IN_MEMORY = 8 * 2**30  # bytes; sets that are computed rather than stored must fit beside the training


def whole_number(value: Any) -> bool:
    """True for an int that is not a bool (YAML's `true` is no count)."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_images(channels: Any, image_size: Any) -> None:
    """Refuse shapes of images that cannot be made."""
    if not whole_number(channels) or channels not in (1, 3):
        raise UserError(f"dataset.channels must be 1 (grey) or 3 (RGB), got {channels!r}")
    if not whole_number(image_size) or not 1 <= image_size <= MAX_IMAGE_SIZE:
        raise UserError(f"dataset.image_size must be a whole number in 1..{MAX_IMAGE_SIZE}, got {image_size!r}")


def check_choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse what is not among the choices."""
    if value not in choices:
        raise UserError(f"{key} must be one of {', '.join(choices)}, got {value!r}")


def check_count(key: str, value: Any, low: int, high: int) -> None:
    """Refuse what is not a whole number in low..high."""
    if not whole_number(value) or not low <= value <= high:
        raise UserError(f"{key} must be a whole number in {low}..{high}, got {value!r}")


def check_flag(key: str, value: Any) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool):
        raise UserError(f"{key} must be true or false, got {value!r}")


def check_num_classes(given: Any, found: int, *, what: str) -> bool:
    """Whether the labels are kept: all classes (their number, or null) or none of them (0)."""
    if given is None or (whole_number(given) and given == found):
        return found > 0
    if whole_number(given) and given == 0:
        return False
    rule = f"{found} ({what} has so many), or 0 to leave the labels out" if found else f"0 ({what} has no classes)"
    raise UserError(f"dataset.num_classes must be {rule}, got {given!r}")


def check_in_memory(num_items: int, item_bytes: int) -> None:
    """Refuse a computed set that would not fit in memory."""
    if num_items * item_bytes > MAX_IN_MEMORY:
        raise UserError(
            f"dataset: {num_items} images of {item_bytes} bytes are {num_items * item_bytes / 2**30:.0f} GiB and this "
            f"set is kept in memory ({MAX_IN_MEMORY // 2**30} GiB at most); choose a smaller dataset.image_size"
        )


def folder(key: str, value: Any) -> Path:
    """The path a key gives, with `~` expanded."""
    if not isinstance(value, str | Path) or not str(value).strip():
        raise UserError(f"{key} must be the path of a folder, got {value!r}")
    return Path(value).expanduser()
