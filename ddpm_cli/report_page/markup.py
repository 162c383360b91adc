"""HTML put together from nested calls. All but what was made here is escaped: names and settings may hold anything."""

from collections.abc import Iterable
from html import escape
from typing import Any

_VOID = {"img", "meta", "br"}


class Html(str):
    """Text that is HTML already."""


Child = Any  # Html, text, a number, None (nothing), or any iterable of these


def tag(name: str, /, *children: Child, **attributes: Any) -> Html:
    """<name ...>children</name>. class_ is class; one that is None is left out."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    words = [f' {key}="{escape(str(value))}"' for key, value in given.items()]
    end = "" if name in _VOID else f"{joined(*children)}</{name}>"
    return Html(f"<{name}{''.join(words)}>{end}")


def joined(*children: Child) -> Html:
    """The children one after the other, each escaped that is not Html."""
    return Html("".join(_flat(children)))


def table(head: Iterable[Child], rows: Iterable[Iterable[Child]], class_: str = "") -> Html:
    """A table that scrolls by itself where the screen is narrower. A cell that is a td already stays as it is."""
    body = [tag("tr", *(_cell(child, "td") for child in row)) for row in rows]
    parts = tag("thead", tag("tr", *(_cell(child, "th") for child in head))), tag("tbody", *body)
    return tag("div", tag("table", *parts), class_=f"scroll {class_}".strip(), tabindex=0)


def _cell(child: Child, name: str) -> Html:
    ready = isinstance(child, Html) and child.startswith("<td")
    return child if ready else tag(name, child)


def _flat(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if isinstance(child, Html):
            yield child
        elif isinstance(child, str):
            yield escape(child)
        elif isinstance(child, Iterable):
            yield from _flat(child)
        elif child is not None:
            yield escape(str(child))
