"""The whole page: a heading, the runs at a glance, and the sections that there is something to put into."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm_cli import __version__
from ddpm_cli.report_page import sections
from ddpm_cli.report_page.evaluations import evaluations, told
from ddpm_cli.report_page.markup import Html, joined, table, tag
from ddpm_cli.report_page.pictures import Pictures
from ddpm_cli.report_page.recordings import Recordings
from ddpm_cli.report_page.subject import Subject, subjects
from ddpm_cli.results.chart import colours
from ddpm_cli.results.runs import Run
from ddpm_cli.results.table import Table, shown

GENERATOR = "ddpm-report"
# Nothing is loaded from anywhere, and nothing runs, whatever may have slipped into the page.
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


def page(compared: Table, title: str, *, num_runs: int, num_previews: int) -> str:
    """HTML of the runs, best first. The first num_runs of them have curves and pictures."""
    all_of_them, recordings = subjects(compared), Recordings()
    first, pictures, keys = all_of_them[:num_runs], Pictures(), compared.settings
    found = {
        "Runs": joined(_runs(all_of_them, compared), sections.settings(first)),
        "Evaluations": evaluations(all_of_them, keys),
        "Curves": sections.curves(first),
        "Samples": sections.samples(first, pictures, num_previews),
        "Sounds": sections.sounds(first, recordings),
        "Walks": sections.walks(first, pictures),
        "Commands": sections.commands(all_of_them),
        "Environment": sections.environment(all_of_them),
    }
    parts = {name: content for name, content in found.items() if content}
    links = [tag("a", name, href=f"#{name.lower()}") for name in parts]
    header = tag("header", tag("h1", title), tag("p", _counts(compared.runs), class_="soft"), tag("nav", *links))
    body = [tag("section", tag("h2", name), content, id=name.lower()) for name, content in parts.items()]
    return _document(
        title, joined(header, *body, _footer(len(all_of_them) - len(first), pictures.left_out, recordings.left_out))
    )


def _document(title: str, content: Html) -> str:
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8") + colours("")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"{GENERATOR} {__version__}"),
        tag("title", title),
        tag("style", Html(style)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', content)), lang='en')}\n"


def _counts(runs: Sequence[Run]) -> str:
    counts = Counter(run.status for run in runs)
    states = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"1 run, {states.removeprefix('1 ')}" if len(runs) == 1 else f"{len(runs)} runs: {states}"


def _footer(runs: int, pictures: int, sounds: int) -> Html:
    left = [f"curves and pictures of {runs} more runs"] if runs else []
    full = {"pictures": pictures, "sounds": sounds}
    left += [f"{count} {what}, for which the page had no room" for what, count in full.items() if count]
    made = time.strftime("%Y-%m-%d %H:%M")
    words = f"Left out: {' and '.join(left)}. " if left else ""
    return tag("footer", f"{words}Made by ddpm-report {__version__} on {made}.")


def _runs(all_of_them: Sequence[Subject], compared: Table) -> Html:
    known: dict[str, list[Any]] = {
        "step": [s.run.step for s in all_of_them],
        "time": [_duration(s.run.seconds) for s in all_of_them],
    }
    ends = {name: column for name, column in known.items() if any(column)}  # a drawing has neither
    head = ["", "", *compared.settings, *compared.metrics, *ends]
    rows: list[Any] = []
    for place, s in enumerate(all_of_them):
        run = s.run
        cells = [_interval(run, name) for name in compared.metrics]
        named = joined(sections.chip(s.number), " ", compared.name(run))
        status = tag("td", run.status, class_=run.status)
        values = [shown(run.setting(key)) for key in compared.settings]
        rows.append([named, status, *values, *cells, *(column[place] for column in ends.values())])
        if run.error:
            rows.append([tag("td", tag("span", run.error.splitlines()[0]), colspan=len(head), class_="error")])
    return table(head, rows)


def _interval(run: Run, name: str) -> Html | None:
    value, low, high = (run.metrics.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    return told({"value": value, "low": low, "high": high})


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"
