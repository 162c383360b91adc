"""Lengths of time as they are typed (`90s`, `10m`, `1h30m`)."""

import re

EXAMPLES = "90s, 10m, 2h or 1h30m"
_UNITS = {"h": 3600, "m": 60, "s": 1}
_PATTERN = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in _UNITS))


def seconds_of(text: object) -> float:
    """Seconds in a duration above zero; ValueError for a bare number: who typed it knows its unit, we do not."""
    match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
    total = sum(float(n) * size for n, size in zip(match.groups("0"), _UNITS.values(), strict=True)) if match else 0.0
    if not 0 < total < 1e9:
        raise ValueError(f"expected a duration such as {EXAMPLES}, got {text!r}")
    return total
