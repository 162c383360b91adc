"""What TensorBoard's HParams compares runs by."""

import json
from collections.abc import Mapping
from typing import Any

from ddpm_cli.run_dir.hydra_record import INVOCATION_KEYS
from ddpm_cli.system import tree

_WHERE = ("root", "cache", "download")  # of a data set: where it is, not what it is


def hparams(cfg: Mapping[str, Any], choices: Mapping[str, str | None]) -> dict[str, bool | float | str]:
    """Every choice and setting of a run, whether it was typed or not: a setting that any other run varies then has a
    value here too. Numbers are numbers; what is null is left out, since among numbers it would make texts of them all.
    """
    found: dict[str, bool | float | str] = {}
    found |= {group: option for group, option in choices.items() if option is not None and "/" not in group}
    for key, value in tree.leaves(dict(cfg), into=(dict,)):
        last = key.rpartition(".")[2]
        if value is None or key in INVOCATION_KEYS or last in _WHERE or last.startswith("_") or key in found:
            continue
        if isinstance(value, list):
            value = json.dumps(value, separators=(",", ":"))
        found[key] = value if len(str(value)) <= 200 else f"{str(value)[:197]}..."  # a schedule's values
    return found
