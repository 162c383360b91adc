"""Classes by their names."""

from typing import Any

from ddpm_cli.build.load import Trained
from ddpm_cli.build.model import null_label
from ddpm_cli.errors import UserError

_NAMES_SHOWN = 20  # of classes, in a message


def class_numbers(labels: Any, trained: Trained, *, key: str = "labels") -> Any:
    """The labels as typed, names of classes replaced by their numbers; UserError for a class that is not there."""
    count, names = null_label(trained.denoiser.network), trained.class_names
    if labels in (None, "each", "none") or count is None:
        return labels
    numbers = {name: number for number, name in enumerate(names)}
    chosen: list[Any] = [numbers.get(label, label) for label in (labels if isinstance(labels, list) else [labels])]
    wrong = [label for label in chosen if isinstance(label, str) or not 0 <= label < count]
    if wrong:
        known = ", ".join(f"{number} {name}" for number, name in enumerate(names[:_NAMES_SHOWN]))
        more = ", ..." if len(names) > _NAMES_SHOWN else ""
        told = f": {known}{more}" if any(name != str(number) for number, name in enumerate(names)) else ""
        raise UserError(f"{key} must lie in 0..{count - 1} (the checkpoint's classes{told}), got {wrong[0]}")
    return chosen if isinstance(labels, list) else chosen[0]
