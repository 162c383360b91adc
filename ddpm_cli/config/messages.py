"""Words about wrong keys and values: what may have been meant."""

import difflib
from collections.abc import Iterable
from typing import Any

MISSING = "???"  # a required value that nobody gave, as OmegaConf writes it


def near_option(value: str, options: Iterable[str]) -> str:
    """`; did you mean adam?`, or nothing."""
    near = difflib.get_close_matches(value, list(options), n=1, cutoff=0.65)
    return f"; did you mean {near[0]}?" if near else ""


def shown(value: Any) -> str:
    """The value as the user would type it, shortened."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    text = repr(value) if isinstance(value, str) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What to tell about a key that does not exist: the keys it may have been meant to be."""
    known = [name for name in dict.fromkeys(known) if not _last(name).startswith("_")]
    siblings = {_last(name): name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]}
    near = [name for name in known if _last(name) == _last(key)][:3]
    near = near or [siblings[name] for name in difflib.get_close_matches(_last(key), siblings, n=2, cutoff=0.7)]
    near = near or [name for name in known if difflib.get_close_matches(_last(key), [_last(name)], cutoff=0.8)][:3]
    near = near or difflib.get_close_matches(key, known, n=2, cutoff=0.8)
    return f"unknown key {key}" + (f"; did you mean {' or '.join(near)}?" if near else "; see all with --cfg job")


def _last(key: str) -> str:
    return key.rpartition(".")[2]
