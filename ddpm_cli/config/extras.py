"""What of a configuration needs a package that is not always installed."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from ddpm_cli.errors import UserError

EXTRA_TRACKERS = ("wandb", "mlflow")  # the packages, and the extras that have them, are called alike


def check_trackers(config: Mapping[str, Any]) -> None:
    """UserError with what to type, where a tracker's package is missing or it is named twice."""
    names = config.get("trackers") or ()
    if twice := [name for k, name in enumerate(names) if name in names[:k]]:
        raise UserError(f"trackers: {twice[0]} is named twice")
    for name in names:
        # Of a mere folder of that name, as W&B makes one, there is a spec too, without an origin.
        if name in EXTRA_TRACKERS and ((spec := find_spec(name)) is None or spec.origin is None):
            raise UserError(f'trackers: {name} is not installed: pip install "ddpm_cli[{name}]", or leave it out')
