"""The hash that tells one prepared data set from another."""

import hashlib
import json
from typing import Any

FORMAT = 1  # of prepared sets; raise it when the same settings would give other pixels


def fingerprint(key: dict[str, Any]) -> str:
    """16 hex digits that are a function of the key (plain values) and of the format of prepared sets."""
    text = json.dumps({"format": FORMAT, **key}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
