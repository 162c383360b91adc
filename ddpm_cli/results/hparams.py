"""What TensorBoard's HParams, and other trackers, compare runs by."""

import json
from collections.abc import Mapping
from typing import Any

from ddpm_cli.run_dir.hydra_record import INVOCATION_KEYS
from ddpm_cli.system import tree

_WHERE = ("root", "cache", "download")  # of a data set: where it is, not what it is
_TOLD = ("trackers", "tracking")  # where these figures go


def hparams(cfg: Mapping[str, Any], choices: Mapping[str, str | None]) -> dict[str, bool | float | str]:
    """Every choice and setting of a run, whether it was typed or not: a setting that any other run varies then has a
    value here too. Numbers are numbers; what is null is left out, since among numbers it would make texts of them all.
    """
    found: dict[str, bool | float | str] = {}
    found |= {group: option for group, option in choices.items() if option is not None and "/" not in group}
    for key, value in tree.leaves(dict(cfg), into=(dict,)):
        first, last = key.split(".")[0], key.rpartition(".")[2]
        where = key in INVOCATION_KEYS or first in _TOLD or last in _WHERE
        if value is None or where or last.startswith("_") or key in found:
            continue
        if isinstance(value, list):
            value = json.dumps(value, separators=(",", ":"))
        found[key] = value if len(str(value)) <= 200 else f"{str(value)[:197]}..."  # a schedule's values
    return found
