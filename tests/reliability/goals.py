"""The goals R1 to R21 with the number of their trials, and the table of what came of them."""

import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from reliability import (
    boards,
    cost,
    data,
    drawing,
    files,
    folders,
    forks,
    hostile,
    lines,
    numbers,
    ranks,
    resuming,
    signals,
)
from reliability.runs import Outcome


@dataclass(frozen=True)
class Goal:
    """`full` and `short` are the numbers of trials that `check` is asked for, 0 all cases of its list; short None: the
    suite's other tests have that goal's short version."""

    name: str
    title: str
    check: Callable[[Path, int], Outcome]
    full: int
    short: int | None


GOALS = [
    Goal("R1", "killed anywhere, gone on with: the same run", resuming.r1_kills, 100, 2),
    Goal("R2", "exact resume; controls: nothing left out goes unnoticed", resuming.r2_stops, 15, None),
    Goal("R3", "any number of preparing threads: the same run", resuming.r3_preparing_threads, 6, None),
    Goal("R4", "flipped bits and cut-off files detected, good file used", files.r4_damage, 300, 5),
    Goal("R5", "full disk: old checkpoint stays, one line", files.r5_full_disk, 20, None),
    Goal("R6", "signals in every phase: saved, 143/130/129, 10 s", signals.r6_signals, 48, 1),
    Goal("R7", "not finite: not applied, not saved, told or rolled back", numbers.r7_not_finite, 16, 1),
    Goal("R8", "out of memory: one line, two overrides; auto", numbers.r8_memory, 6, None),
    Goal("R9", "wrong command lines refused by name", lines.r9_command_lines, 200, None),
    Goal("R10", "folders are not shared, live ones locked", folders.r10_together, 10, None),
    Goal("R11", "unwritable folders told before data is loaded", folders.r11_unwritable, 0, 2),
    Goal("R12", "foreign and misfitting checkpoints refused", files.r12_foreign, 0, 2),
    Goal("R13", "hostile files: no code runs", hostile.r13_hostile, 0, 2),
    Goal("R14", "unreadable images named, or skipped and counted", data.r14_images, 0, None),
    Goal("R15", "failing threads, killed preparing: told, repaired", data.r15_workers, 12, 1),
    Goal("R16", "broken downloads told, never used", data.r16_downloads, 0, None),
    Goal("R17", "retention keeps the newest good checkpoint", files.r17_retention, 100, 5),
    Goal("R18", "one point a step after crashes", boards.r18_metrics, 20, None),
    Goal("R19", "images by seed and number; interrupted sets completed", drawing.r19_sampling, 20, 1),
    Goal("R20", "all of it costs at most 1 % of a step", cost.r20_cost, 5, 0),
    Goal("R21", "three ranks: killed, told, stopped, started at once", ranks.r21_ranks, 40, 4),
]


def check(goal: Goal, *, short: bool) -> tuple[Outcome, float]:
    """The goal's trials, each goal in a folder of its own that is removed when all went well."""
    place, began = Path(tempfile.mkdtemp(prefix=f"reliability_{goal.name}_")).resolve(), time.monotonic()
    place.chmod(0o755)  # R11's trials run as another user
    try:
        outcome = goal.check(place, (goal.short or 0) if short else goal.full)
    except Exception:
        outcome = Outcome(1, [traceback.format_exc()[-1500:]])
    if outcome.failures:
        print(f"{goal.name}: see {place}", file=sys.stderr)
    else:
        shutil.rmtree(place, ignore_errors=True)
    return outcome, time.monotonic() - began


def main(names: Iterable[str], *, short: bool, to: Path | None) -> int:
    """Prints a row a goal as it is done, and the failures; 1 if there are any. `to`: a file for what was found."""
    forks.warm_up()
    wanted, failed, found = set(names), 0, {}
    print(f"{'goal':<5} {'what must hold':<58} {'trials':>6} {'failures':>8} {'seconds':>8}")
    for goal in GOALS:
        if (wanted and goal.name not in wanted) or (short and goal.short is None):
            continue
        outcome, seconds = check(goal, short=short)
        failed += bool(outcome.failures)
        found[goal.name] = asdict(outcome)
        print(f"{goal.name:<5} {goal.title:<58} {outcome.trials:>6} {len(outcome.failures):>8} {seconds:>8.0f}")
        for line in [*([outcome.note] if outcome.note else []), *(failure[:1000] for failure in outcome.failures[:20])]:
            print(f"      {line}")
        sys.stdout.flush()
    if to is not None:
        to.write_text(json.dumps(found), encoding="utf-8")
    return int(failed > 0)
