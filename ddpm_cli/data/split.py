"""Which items of a set that comes in one piece are for training, and which for testing."""

from ddpm_cli.data.checks import check_split

_EVERY = 6


def in_split(count: int, split: str) -> list[bool]:
    """Of each of so many items, in their order: `test` is every sixth, `train` the rest, `all`. UserError for a split
    that only published sets have."""
    check_split(split, ("train", "test", "all"))
    return [split == "all" or (number % _EVERY == _EVERY - 1) == (split == "test") for number in range(count)]
