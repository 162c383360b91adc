"""Trees of dicts and lists, such as a configuration or what a checkpoint holds, walked by dotted key."""

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(node: Any, key: str = "", *, into: tuple[type, ...] = (dict, list, tuple)) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that is not itself a container; an empty one has none. into: what is a container,
    `dict` alone where a list is a value."""
    if not isinstance(node, into):
        yield key, node
        return
    for name, child in node.items() if isinstance(node, dict) else enumerate(node):  # type: ignore[arg-type]
        yield from leaves(child, f"{key}.{name}" if key else str(name), into=into)


def keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key of nested dicts, those of inner nodes included."""
    for name, child in node.items():
        yield f"{prefix}{name}"
        if isinstance(child, dict):
            yield from keys(child, f"{prefix}{name}.")


def get(node: Any, key: str, default: Any = None) -> Any:
    """What nested dicts hold at a dotted key; `default` where they hold nothing."""
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return default
        node = node[name]
    return node


def put(node: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key in place; inner dicts that are missing are made."""
    *inner, last = key.split(".")
    for name in inner:
        node = node.setdefault(name, {})
    node[last] = value
