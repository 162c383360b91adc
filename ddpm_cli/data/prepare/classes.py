"""What a data set's labels are, as files tell them, into numbers from 0 and names."""

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
