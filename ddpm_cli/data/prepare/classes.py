"""What a data set's labels are, as files tell them, into numbers from 0 and names."""

import re
from collections.abc import Sequence

from ddpm_cli.errors import UserError

Value = int | str  # the number of a class, or its name

_MOST = 10**6


def classes_of(values: Sequence[Value]) -> tuple[list[int], tuple[str, ...]]:
    """Labels and class names. Numbers stay as they are, so that there may be classes without items; names are sorted.

    UserError for numbers below 0 or beyond counting.
    """
    if all(isinstance(value, int) for value in values):
        numbers = [int(value) for value in values]
        if min(numbers) < 0 or max(numbers) >= _MOST:
            raise UserError(
                f"dataset: classes are numbered from 0 to at most {_MOST - 1}, found {min(numbers)}..{max(numbers)}; "
                "give them names, or dataset.num_classes=0 leaves them out"
            )
        return numbers, tuple(str(number) for number in range(max(numbers) + 1))
    names = sorted({str(value) for value in values})
    places = {name: number for number, name in enumerate(names)}
    return [places[str(value)] for value in values], tuple(names)


def number_or_name(text: str) -> Value:
    return int(text) if text.isascii() and text.isdigit() else text


def values_by_pattern(paths: Sequence[str], pattern: str) -> list[str]:
    """The class that stands in each path; UserError for a pattern that is none or finds none."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"dataset.label_pattern={pattern} is no regular expression: {error}") from error
    if expression.groups != 1:
        raise UserError(f"dataset.label_pattern={pattern} must have one group, which is the class; e.g. '^([a-z]+)_'")
    found = [expression.search(path) for path in paths]
    if wrong := next((path for path, m in zip(paths, found, strict=True) if not m or m[1] is None), None):
        raise UserError(f"dataset.label_pattern={pattern} finds no class in {wrong}; change it, or move the file away")
    return [match[1] for match in found if match]
