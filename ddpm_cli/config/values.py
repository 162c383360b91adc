"""Rules that several knobs share, and those that a default's type implies."""

import os
from dataclasses import replace
from typing import Any

from ddpm_cli.config.durations import EXAMPLES, seconds_of
from ddpm_cli.config.rules import ANYTHING, Rule, either, list_of, matching, one_of, real, refuse, whole

FLAG = one_of(True, False)
FINITE = real()
ANY_WHOLE = whole(-(2**63), 2**63 - 1)
TEXT = Rule("text", lambda value: value if isinstance(value, str) and "\0" not in value else refuse())
COUNT = whole(1, 10**9)
COUNT_OR_NEVER = whole(0, 10**9)
SEED = whole(0, 2**63 - 1)
WIDTH = whole(1, 65536)
POSITIVE = real("a finite number above 0", lambda value: value > 0)
NOT_NEGATIVE = real("a finite number of at least 0", lambda value: value >= 0)
FRACTION = real("a number from 0 to 1", lambda value: 0 <= value <= 1)
BELOW_ONE = real("a number of at least 0 and below 1", lambda value: 0 <= value < 1)
INSIDE = real("a number above 0 and below 1", lambda value: 0 < value < 1)
LOG_SNR = real("a number from -40 to 40", lambda value: -40 <= value <= 40)
SIDE = whole(1, 8192)  # 192 MiB an image
RANGE = list_of(FINITE, length=2)
PATH = Rule(
    "a path",
    lambda value: os.path.expanduser(value) if isinstance(value, str) and value and "\0" not in value else refuse(),
    example="PATH",
)
_NAME = matching(
    "at most 50 letters, digits, dots, dashes and underscores, the first a letter or digit", r"[^\W_][\w.-]{,49}"
)
NAME = replace(_NAME, accept=lambda value: _NAME(str(value) if type(value) is int else value), example="NAME")
MODULE = matching("the name of a module, as down_blocks.0", r"[A-Za-z_][\w.]*")
PACKAGE = matching("the name of a package", r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
LABEL = whole(0, 10**6)
CLASS = either(LABEL, Rule("a name", lambda value: TEXT(value) or refuse()))  # each and none look like names
DURATION = Rule(f"a time with its unit, such as {EXAMPLES}", lambda value: value if seconds_of(value) else refuse())
DEVICE = replace(matching("one of auto, cpu, cuda, cuda:N, mps", r"auto|cpu|cuda(:\d{1,3})?|mps"), example="cpu")


def accepts(rule: Rule, value: Any) -> bool:
    """Whether the rule takes the value."""
    try:
        rule(value)
    except ValueError:
        return False
    return True


def rule_of_type(default: Any) -> Rule:
    """What the type of a knob's default implies."""
    for kind, rule in ((bool, FLAG), (int, ANY_WHOLE), (float, FINITE), (str, TEXT)):
        if isinstance(default, kind):
            return rule
    if isinstance(default, list):
        kinds = {type(item) for item in default}
        return list_of(rule_of_type(default[0]) if len(kinds) == 1 else ANYTHING)
    return ANYTHING
