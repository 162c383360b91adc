"""Rules: what a value must be, in words and as a check that needs no torch."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Rule:
    """What a knob must be, in words, and a function that returns the accepted value or raises ValueError."""

    text: str
    accept: Callable[[Any], Any]
    nullable: bool = False
    example: str = "VALUE"

    def __call__(self, value: Any) -> Any:
        return None if value is None and self.nullable else self.accept(value)


def refuse() -> Any:
    raise ValueError


def nullable(rule: Rule) -> Rule:
    return replace(rule, nullable=True, text=f"{rule.text} or null")


def whole(low: int, high: int) -> Rule:
    """A whole number; 1e5 is one, and comes out as 100000."""

    def accept(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            refuse()
        return int(value) if value == int(value) and low <= value <= high else refuse()

    return Rule(f"a whole number from {low} to {high}", accept)


def real(text: str = "a finite number", test: Callable[[float], bool] = lambda value: True) -> Rule:
    """A finite number that passes the test; a whole number is one, and comes out as a float."""

    def accept(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            refuse()
        return float(value) if test(value) else refuse()

    return Rule(text, accept)


def one_of(*choices: Any) -> Rule:
    names = [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in choices]

    def accept(value: Any) -> Any:
        matches = [choice for choice in choices if type(choice) is type(value) and choice == value]
        return matches[0] if matches else refuse()

    return Rule(f"one of {', '.join(names)}", accept)


def matching(text: str, pattern: str) -> Rule:
    return Rule(text, lambda value: value if isinstance(value, str) and re.fullmatch(pattern, value) else refuse())


def either(*rules: Rule) -> Rule:
    def accept(value: Any) -> Any:
        for rule in rules:
            try:
                return rule(value)
            except ValueError:
                continue
        return refuse()

    return Rule(" or ".join(rule.text for rule in rules), accept)


def list_of(rule: Rule, length: int | None = None, least: int = 0) -> Rule:
    def accept(value: Any) -> list[Any]:
        if not isinstance(value, list) or len(value) < least or length not in (None, len(value)):
            refuse()
        return [rule(item) for item in value]

    return Rule(f"a list of {length or 'values'}, each {rule.text}", accept)


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return refuse() if isinstance(value, float) and not math.isfinite(value) else value


ANYTHING = Rule("a finite value", _finite)
