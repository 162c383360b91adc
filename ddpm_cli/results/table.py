"""Runs side by side: the settings that differ and the metrics with their intervals, best first; a sweep's summary."""

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from ddpm_cli.config.figures import HIGHER_IS_BETTER
from ddpm_cli.results.quality import label, quality
from ddpm_cli.results.runs import Run, is_run, read
from ddpm_cli.system.files import write_text

PICTURE = "summary.svg"  # of a sweep of evaluations
_OF_TRAINING = ("loss", "v_error_heldout")  # of all that is logged at its steps


@dataclass(frozen=True)
class Table:
    """Rows of plain values; None where a run has none."""

    runs: list[Run]  # in the order of the rows
    settings: list[str]  # keys whose values differ
    metrics: list[str]  # without the _low and _high of those with an interval
    objective: str | None  # the metric by which the rows are sorted
    root: Path  # where the runs lie, for their names

    def name(self, run: Run) -> str:
        """The run's place below the root (a job's number), and the word it was given unless all have the same."""
        place = os.path.relpath(run.path, self.root)
        told = run.config.get("name") and len({other.name for other in self.runs}) > 1
        return f"{place} {run.name}" if told else place

    def csv(self) -> str:
        """Every value in full: job, status, settings, all metrics with NAME_low and NAME_high, error."""
        metrics = list(dict.fromkeys(name for run in self.runs for name in run.metrics))
        metrics.sort(key=lambda name: _base(name) not in self.metrics)  # stable: those of `markdown` first
        metrics.sort(key=lambda name: _base(name) != self.objective)
        columns = ["job", "name", "status", *self.settings, *metrics, "seconds", "error"]
        out = io.StringIO(newline="")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        for run in self.runs:
            place, named = os.path.relpath(run.path, self.root), run.config.get("name")
            values = [*map(run.setting, self.settings), *map(run.metrics.get, metrics), run.seconds, run.error]
            writer.writerow(["" if value is None else value for value in [place, named, run.status, *values]])
        return out.getvalue()

    def markdown(self) -> str:
        """What a person reads: four digits, intervals in brackets."""
        failed = any(run.error for run in self.runs)
        labels = [label(self.runs, name) for name in self.metrics]
        rows = [["job", "status", *self.settings, *labels, *(["error"] if failed else [])]]
        for run in self.runs:
            settings, metrics = map(run.setting, self.settings), (with_interval(run, name) for name in self.metrics)
            error = [shorten(run.error, 80, placeholder=" ...")] if failed else []
            rows.append([self.name(run), run.status, *map(shown, settings), *metrics, *error])
        return markdown(rows)

    def failures(self) -> list[str]:
        """A line for each way in which runs did not come to their end, with the first of them."""
        lines = []
        for status in dict.fromkeys(run.status for run in self.runs if run.status in ("failed", "refused")):
            runs = [run for run in self.runs if run.status == status]
            why = next(iter(runs[0].error.splitlines()), "")
            lines.append(f"{len(runs)} of {len(self.runs)} jobs {status}: job {self.name(runs[0])}: {why}")
        return lines


def compared(runs: Sequence[Run], root: Path | None = None) -> Table:
    """The runs side by side, best first by the objective: the metric that most of them keep their best checkpoint by,
    else what was evaluated first, else the loss. Those that are not done come last, in the order they were given."""
    root = root or Path(os.path.commonpath([run.path.parent.absolute() for run in runs] or [Path.cwd()]))
    objective = _objective(runs)
    sign = -1 if objective and _plain(objective) in HIGHER_IS_BETTER else 1

    def rank(run: Run) -> tuple[bool, bool, float]:
        done, value = run.status == "done", run.metrics.get(objective or "", math.nan)
        known = done and math.isfinite(value)
        return (not done, not known, sign * value if known else 0)

    return Table(sorted(runs, key=rank), _differing(runs), _told(runs, objective), objective, root)


def _differing(runs: Iterable[Run]) -> list[str]:
    """Keys typed for any run, and groups, whose values are not the same in all; those typed first come first."""
    runs = list(runs)
    keys = dict.fromkeys([key for run in runs for key in run.settings] + [key for run in runs for key in run.choices])
    return [key for key in keys if len({(type(v) is bool, v) for v in (run.setting(key) for run in runs)}) > 1]


def _objective(runs: Sequence[Run]) -> str | None:
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    training = (run.config.get("training") for run in runs)
    kept = [node["keep_best"] for node in training if isinstance(node, dict) and node.get("keep_best")]
    wanted = max(kept, key=kept.count) if kept else None
    candidates = [name for name in names if wanted and _plain(name) == wanted]
    candidates += [name for name in names if "loss" not in names and f"{name}_low" in names]
    return next(iter([*candidates, *(name for name in ("loss", *names) if name in names)]), None)


def _told(runs: Sequence[Run], objective: str | None) -> list[str]:
    """The metrics that a table shows: all of an evaluation; of training, which logs much else, the loss, what is
    comparable whatever is trained, and those with an interval."""
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    bases = [name for name in names if _base(name) == name or _base(name) not in names]
    trained = any((run.path / "metrics.jsonl").exists() for run in runs)
    told = [name for name in bases if not trained or name in _OF_TRAINING or f"{name}_low" in names]
    return list(dict.fromkeys([*([objective] if objective else []), *told]))


def _base(name: str) -> str:
    return name.removesuffix("_low").removesuffix("_high")


def _plain(name: str) -> str:
    return name.removeprefix("eval/")


def with_interval(run: Run, name: str) -> str:
    """`3.21 [3.05, 3.4]`, or what there is of it."""
    if name not in run.metrics:
        return ""
    low, high = run.metrics.get(f"{name}_low"), run.metrics.get(f"{name}_high")
    return shown(run.metrics[name]) + (f" [{shown(low)}, {shown(high)}]" if None not in (low, high) else "")


def shown(value: Any) -> str:
    """A value in a table: four digits of a number that is not whole."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: ""}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, the first row its head, with columns that line up where it is read as text too."""
    cells = [[text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for text in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def write_summary(sweep: Path) -> Table | None:
    """summary.csv and summary.md of a sweep, and of one of evaluations summary.svg, anew from the folders of its jobs;
    None if there are none. OSError as it comes."""
    runs = [run for run in read([sweep]) if not _is_of_a_job(run, sweep)]
    if not runs:
        return None
    table = compared(runs, sweep)
    write_text(sweep / "summary.csv", table.csv())
    write_text(sweep / "summary.md", table.markdown())
    if picture := quality(runs, table.settings, table.objective or ""):
        write_text(sweep / PICTURE, picture)
    return table


def _is_of_a_job(run: Run, sweep: Path) -> bool:
    """Whether this is no job but lies inside one, as the evaluation of a job's checkpoint may."""
    return any(is_run(folder) for folder in run.path.parents if folder != sweep and folder.is_relative_to(sweep))
