"""The sections of a report: what the runs are, how they went, what they draw, and how they were made."""

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ddpm_cli.report_page.markup import Html, joined, table, tag
from ddpm_cli.report_page.pictures import Pictures
from ddpm_cli.report_page.recordings import Recordings
from ddpm_cli.report_page.subject import Subject, sweep_commands
from ddpm_cli.results.chart import Series, chart
from ddpm_cli.system import tree

_FIRST = ("loss", "eval/", "v_error_")  # curves that are shown at once: of that name, or whose names begin so
_AT_LEVEL = re.compile(r"(.+)_at_([+-]\d+)")  # what was logged by noise level, and the log-SNR
_AT_ONCE, _MOST_CHARTS = 2, 24  # shown at least, and at most
# Where runs differ in one of these, their losses are different quantities.
_SCALES = ("prediction", "weighting", "loss", "schedule", "timesteps", "dataset")


def curves(subjects: Sequence[Subject]) -> Html | None:
    """What was logged over the steps, a chart a name, all runs in it."""
    logged = dict.fromkeys(name for s in subjects for name in s.run.curves)
    names = [name for name in logged if not name.endswith(("_low", "_high")) and not _AT_LEVEL.fullmatch(name)]
    first = [name for part in _FIRST for name in names if name == part or (part != "loss" and name.startswith(part))]
    charts = [_chart(name, subjects) for name in dict.fromkeys([*first, *names])][:_MOST_CHARTS]
    by_level = dict.fromkeys(match[1] for name in logged if (match := _AT_LEVEL.fullmatch(name)))
    charts[len(first) : len(first)] = [_level_chart(name, subjects) for name in by_level]
    count = max(len(first) + len(by_level), _AT_ONCE)
    others = tag("div", *charts[count:], class_="charts") if charts[count:] else None
    more = tag("details", tag("summary", f"More curves ({len(charts) - count})"), others) if others else None
    return joined(_scale_note(subjects), tag("div", *charts[:count], class_="charts"), more) if charts else None


def _chart(name: str, subjects: Sequence[Subject]) -> Html:
    series = []
    for s in subjects:
        points = dict(s.run.curves.get(name, []))
        ends = [dict(s.run.curves.get(f"{name}_{end}", [])) for end in ("low", "high")]
        if points:
            low, high = ([end.get(step, value) for step, value in points.items()] if end else None for end in ends)
            label = s.label if len(subjects) > 1 else ""
            series.append(Series(label, list(points), list(points.values()), low, high, colour=s.number))
    return Html(chart(series, title=name, x_label="step"))


def _level_chart(name: str, subjects: Sequence[Subject]) -> Html:
    """The last values of what was logged by noise level."""
    series = []
    for s in subjects:
        found = ((_AT_LEVEL.fullmatch(logged), points) for logged, points in s.run.curves.items())
        last = sorted((int(match[2]), points[-1][1]) for match, points in found if match and match[1] == name)
        if last:
            label = s.label if len(subjects) > 1 else ""
            series.append(Series(label, [level for level, _ in last], [value for _, value in last], colour=s.number))
    return Html(chart(series, title=f"{name} at the end", x_label="log-SNR (much noise to little)"))


def _scale_note(subjects: Sequence[Subject]) -> Html | None:
    differ = [key for key in _SCALES if len({str(s.run.choices.get(key)) for s in subjects}) > 1]
    if not differ:
        return None
    other = "; compare them by v_error" if any("v_error_heldout" in s.run.curves for s in subjects) else ""
    words = f"The runs differ in {', '.join(differ)}: their losses are different quantities{other}."
    return tag("p", words, class_="note")


def samples(subjects: Sequence[Subject], pictures: Pictures, num_previews: int) -> Html | None:
    """Grids side by side, a column a run: the last preview of each, earlier ones, and what else the folders hold."""
    shown = [s for s in subjects if s.previews or s.pictures]
    if not shown:
        return None
    last = [max(s.previews, default=0) for s in shown]
    steps = [last, *([step] * len(shown) for step in _earlier(shown, num_previews - 1))]
    files = [[(f"step {step:,}", s.previews.get(step)) for step, s in zip(row, shown, strict=True)] for row in steps]
    names = dict.fromkeys(name for s in shown for name in s.pictures)
    files += [[(name, s.pictures.get(name)) for s in shown] for name in names]
    rows = [[_figure(pictures, caption, file) if file else None for caption, file in row] for row in files]
    note = _noise_note(shown) if len(shown) > 1 or shown[0].previews else None
    look = "pictures few" if len(shown) <= 2 else "pictures"
    return joined(note, table(map(heading, shown), filter(any, rows), class_=look))


def _earlier(subjects: Iterable[Subject], count: int) -> list[int]:
    """Steps before the last ones, the latest first, evenly spread over those that there are previews of."""
    steps = sorted({step for s in subjects for step in list(s.previews)[:-1]})
    kept = {steps[round(k * (len(steps) - 1) / max(count - 1, 1))] for k in range(count)} if steps else set()
    return sorted(kept, reverse=True)


def _noise_note(subjects: Sequence[Subject]) -> Html:
    seeds = sorted({str(s.seed) for s in subjects})
    same = len(seeds) == 1 and len({str(s.run.setting("dataset")) for s in subjects}) == 1
    if same:
        return tag("p", f"The same place in two grids is the same noise (seed {seeds[0]}).", class_="note")
    return tag("p", f"The runs have seeds {', '.join(seeds)}: their noise is not the same.", class_="note")


def sounds(subjects: Sequence[Subject], recordings: Recordings) -> Html | None:
    """What each run's sounds are like, to be played: the last preview, or what was drawn."""
    players = []
    for s in subjects:
        for name, file in s.recordings.items():
            address = recordings.address(file)
            if address is not None:
                player = tag("audio", controls="", preload="metadata", src=address)
                players.append(tag("figure", player, tag("figcaption", heading(s), " ", name)))
    return tag("div", *players, class_="figures") if players else None


def walks(subjects: Sequence[Subject], pictures: Pictures) -> Html | None:
    """From noise to image."""
    figures = [_figure(pictures, joined(heading(s), " ", file.name), file) for s in subjects for file in s.walks]
    return tag("div", *figures, class_="figures") if any(figures) else None


def _figure(pictures: Pictures, caption: Any, file: Path) -> Html | None:
    address = pictures.address(file)
    if address is None:
        return None
    image = tag("img", src=address, alt=str(file.name), loading="lazy", decoding="async")
    return tag("figure", image, tag("figcaption", caption))


def heading(subject: Subject) -> Html:
    """A run's colour and label."""
    return joined(chip(subject.number), " ", subject.label)


def chip(number: int) -> Html:
    return tag("span", "", class_=f"chip c{number % 8} d{number // 8 % 4}")


def commands(subjects: Sequence[Subject]) -> Html:
    """The command lines that make the runs again: of whole sweeps, then of each run."""
    sweeps = sweep_commands(s.run for s in subjects)
    whole = [joined(tag("p", str(folder)), tag("pre", command)) for folder, command in sweeps.items()]
    single = [joined(tag("p", heading(s)), tag("pre", s.command)) for s in subjects]
    folded = tag("details", tag("summary", f"Each run ({len(single)})"), *single)
    return joined(*whole, folded if whole and len(single) > 1 else single)


def environment(subjects: Sequence[Subject]) -> Html | None:
    """What the runs ran on, once where it is the same."""
    told = sorted((s for s in subjects if s.environment), key=lambda s: (str(s.environment), s.number))
    blocks = []
    for _, same in groupby(told, key=lambda s: s.environment):
        group = list(same)
        heads = None if len(group) == len(subjects) else tag("p", *(joined(heading(s), tag("br")) for s in group))
        blocks.append(joined(heads, table((), group[0].environment.items(), class_="pairs")))
    return joined(*blocks) if blocks else None


def settings(subjects: Sequence[Subject]) -> Html | None:
    """Every value in which the resolved configurations differ, and those they share."""
    known = [dict(tree.leaves(s.run.config, into=(dict,))) for s in subjects]
    keys = [key for key in dict.fromkeys(key for config in known for key in config) if key not in ("run_dir", "resume")]
    values = {key: [text_of(config.get(key)) for config in known] for key in keys}
    differ = [(key, *row) for key, row in values.items() if len(set(row)) > 1]
    same = [(key, row[0]) for key, row in values.items() if len(set(row)) == 1]
    blocks = []
    if differ:
        head = ["", *map(heading, subjects)]
        blocks.append(tag("details", tag("summary", f"Settings that differ ({len(differ)})"), table(head, differ)))
    if same:
        words = f"Settings that are the same ({len(same)})" if len(subjects) > 1 else "Settings"
        blocks.append(tag("details", tag("summary", words), table((), same, class_="pairs")))
    return joined(*blocks) if blocks else None


def text_of(value: Any) -> str:
    return {"True": "true", "False": "false", "None": "null"}.get(str(value), str(value))
