"""Quality against what it costs: a metric over the network evaluations of an image, as samplers are compared."""

from collections.abc import Sequence
from typing import Any

from ddpm_cli.results.chart import Series, chart
from ddpm_cli.results.runs import Run, is_number
from ddpm_cli.system import tree

COST = "network_evaluations"  # of an image, among the metrics of an evaluation
_STEPS = "sampler.num_steps"
_DASHED = 14  # the chart's grey, with dashes


def quality(runs: Sequence[Run], differing: Sequence[str], metric: str) -> str | None:
    """An SVG chart: a line with its intervals for runs that differ in nothing but the number of steps, and what real
    images get. None unless evaluations of different cost are among them."""
    keys = [key for key in differing if key != _STEPS]
    lines: dict[str, list[tuple[float, ...]]] = {}
    for run in runs:
        cost, value = run.metrics.get(COST), run.metrics.get(metric)
        if cost and value is not None:  # files of images cost nothing
            low, high = (run.metrics.get(f"{metric}_{end}", value) for end in ("low", "high"))
            lines.setdefault(_name(run, keys), []).append((cost, value, low, high))
    costs = sorted({point[0] for line in lines.values() for point in line})
    if len(costs) < 2:
        return None
    columns = {name: list(zip(*sorted(points), strict=True)) for name, points in sorted(lines.items())}
    series = [Series(name, column[0], column[1], column[2], column[3]) for name, column in columns.items()]
    floors = {floor for run in runs if is_number(floor := _told(run, metric, "floor"))}
    if len(floors) == 1:
        series.append(Series("real images", [costs[0], costs[-1]], [*floors, *floors], colour=_DASHED, level=True))
    return chart(series, title=label(runs, metric), x_label="network evaluations an image (NFE)", log_x=True)


def label(runs: Sequence[Run], metric: str) -> str:
    """What the metric is called where all runs measured it alike (FID@5000), else its key."""
    labels = {_label(run, metric) for run in runs if metric in run.metrics}
    return labels.pop() if len(labels) == 1 else metric


def _label(run: Run, metric: str) -> str:
    """As the evaluation says; of one in training as it would say it."""
    of_few = tree.get(run.config, "eval.num_images", 10_000) if metric == "fid" else 10_000
    return str(_told(run, metric, "label") or (f"FID@{of_few}" if of_few < 10_000 else metric))


def _told(run: Run, metric: str, what: str) -> Any:
    return tree.get(run.evaluation, f"metrics.{metric}.{what}")


def _name(run: Run, keys: Sequence[str]) -> str:
    """What a line is called: the sampler, and all else that differs."""
    given = {key.rpartition(".")[2]: run.setting(key) for key in keys if key != "sampler"}
    parts = [f"{key}={str(value)[-24:]}" for key, value in given.items() if value is not None]
    sampler = run.choices.get("sampler") or tree.get(run.evaluation, "sampler.name") or "images"
    return " ".join([str(sampler), *parts])
