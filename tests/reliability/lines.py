"""R9: command lines that cannot work, by the hundred, each wrong in one way; and some that can."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm_cli.config.check import configuration
from ddpm_cli.config.groups import primary_groups
from ddpm_cli.config.knobs import rule_for
from ddpm_cli.system import tree
from reliability import forks
from reliability.runs import Outcome, trained, unless

# As typed, and as Hydra reads it.
VALUES: list[tuple[str, Any]] = [
    ("abc", "abc"), ("nan", float("nan")), ("inf", float("inf")), ("-inf", float("-inf")), ("-1", -1), ("0", 0),
    ("1e400", float("inf")), ("1e30", 1e30), ("99999999999999999999999", 99999999999999999999999), ("1.5", 1.5),
    ("true", True), ("null", None), ("[]", []), ("[1,[2]]", [1, [2]]), ("{a: 1}", {"a": 1}), ("''", ""), ("' '", " "),
]  # fmt: skip
BROKEN = ["=", "='3", '="3', "=[1", "={a", "=${nope}", "=${nope", "=${oc.env:NO_SUCH_VARIABLE_HERE}", "=1,2", "=a:b:{"]
HOLDS_PATHS = (
    "run_dir",
    "out_dir",
    "root",
    "cache",
    "path",
    "image",
    "mask",
    "to",
    "guide_ckpt",
    "resume",
    "init",
    "ckpt",
)


def r9_command_lines(place: Path, trials: int) -> Outcome:
    """Each is refused with exit 2, in three lines that name the key, without a traceback, in 3 s; good ones pass."""
    outcome, run = Outcome(), trained(place, "reference")
    home = place / "lines"
    home.mkdir(exist_ok=True)
    good = 0
    for command, needed in (("train", []), ("sample", [f"ckpt={run}"])):
        dice = random.Random(0)
        wrong = list(_wrong(command, dice))
        dice.shuffle(wrong)
        for key, text in wrong[:trials]:
            before = sorted(home.iterdir())
            ended = forks.run(command, *needed, text, place=home)
            left = [path for path in home.iterdir() if path not in before and not path.name.startswith("child")]
            outcome.add(
                f"ddpm-{command} {text}",
                unless(ended.code == 2, f"exit {ended.code}: {ended.err[-300:]}"),
                unless(1 <= len(ended.told) <= 3 and "Traceback" not in ended.err, f"told: {ended.err[-300:]}"),
                unless(_named(key, ended.err), f"{key} is not named: {ended.err[-300:]}"),
                unless(not left, f"left behind: {left}"),
                unless(ended.seconds < 3, f"{ended.seconds:.1f} s") if trials < 50 else None,
            )
        for text in list(_right(command, dice))[: max(3, trials // 20)]:
            ended = forks.run("train", "dry_run=true", text, place=home)
            good += 1
            outcome.add(f"ddpm-train {text}", unless(ended.code == 0, f"refused: {ended.err[-300:]}"))
    outcome.note = f"{good} of them good and accepted"
    return outcome


def _named(key: str, text: str) -> bool:
    return any(part in text for part in (key, key.rpartition(".")[2], key.partition(".")[0]) if part)


def _settings(command: str) -> dict[str, Any]:
    """Every dotted key of the default configuration with its value."""
    config = configuration(command, *(["ckpt=x"] if command == "sample" else []))
    return {key: tree.get(config, key) for key in tree.keys(config)}


def _wrong(command: str, dice: random.Random) -> Iterator[tuple[str, str]]:
    settings = _settings(command)
    leaves = {k: v for k, v in settings.items() if not isinstance(v, dict) and not k.endswith("_target_")}
    for key, default in leaves.items():
        rule = rule_for(key, default)
        for text, value in dice.sample(VALUES, len(VALUES)):
            free = _holds_path(key) and text != "''"  # nearly anything is a path
            if not free and not _accepted(rule, value) and key != "ckpt":
                yield key, f"{key}={text}"
        for text in dice.sample(BROKEN, 3):
            if not (_holds_path(key) and text in ("=1,2", "=a:b:{", "=[1", "={a", '="3', "='3")):
                yield key, f"{key}{text}"
        typo = key[:-1] if len(key) > 3 and key[:-1] not in settings else f"{key}x"
        yield from ((typo, f"{typo}=1"), (key, f"~{key}"), (key, f"+{key}=1"), (key, key))
    for group, option in primary_groups(command).items():
        yield from ((group, f"{group}=nope"), (group, f"~{group}"), (group, f"{group}x={option}"))
    yield from (("=3", "=3"), ("new", "+new=1"), ("--nope", "--nope"), ("new.deep", "++new.deep=[1]"))


def _holds_path(key: str) -> bool:
    return key == "features.weights" or key.rpartition(".")[2] in HOLDS_PATHS  # ddpm-sample's own weights are names


def _accepted(rule: Any, value: Any) -> bool:
    try:
        rule(value)
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def _right(command: str, dice: random.Random) -> Iterator[str]:
    """Values of ddpm-train's own defaults, typed out."""
    leaves = [(k, v) for k, v in _settings("train").items() if isinstance(v, bool | int | float) and "." in k]
    for key, value in dice.sample(leaves, len(leaves)):
        yield f"{key}={str(value).lower() if isinstance(value, bool) else value}"
