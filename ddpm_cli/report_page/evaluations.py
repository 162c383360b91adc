"""What ddpm-eval measured: numbers beside their intervals and floors, with the protocol that they hold for."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ddpm_cli.report_page.markup import Html, joined, table, tag
from ddpm_cli.report_page.sections import heading
from ddpm_cli.report_page.subject import Subject
from ddpm_cli.results.quality import COST, quality
from ddpm_cli.results.runs import is_number

# What numbers must share to be compared; the checkpoint, the sampler and its settings are what is compared.
_PROTOCOL = ("num_images", "seed", "reference", "features", "likelihood", "labels")


def evaluations(subjects: Sequence[Subject], differing: Sequence[str]) -> Html | None:
    """Tables and plots, one of each for all numbers that were measured alike."""
    groups: dict[str, list[Subject]] = {}
    for s in subjects:
        if s.run.evaluation.get("metrics"):
            alike = {key: s.run.evaluation.get(key) for key in _PROTOCOL}
            groups.setdefault(json.dumps(alike, sort_keys=True, default=str), []).append(s)
    if not groups:
        return None
    several = f"These were measured in {len(groups)} ways: compare numbers within a table only."
    blocks = [_block(group, differing) for group in groups.values()]
    return joined(tag("p", several, class_="note") if len(groups) > 1 else None, *blocks)


def _block(group: Sequence[Subject], differing: Sequence[str]) -> Html:
    names = list(dict.fromkeys(name for s in group for name in _metrics(s)))
    head = ["", "NFE", *(_metric_label(group, name) for name in names)]
    rows = []
    for s in group:
        numbers = [told(_metrics(s).get(name)) for name in names]
        rows.append([tag("td", heading(s), class_="label"), _cost(s.run.metrics.get(COST)), *numbers])
    floors = [_floor(group, name) for name in names]
    if any(floors):
        rows.append([tag("td", "real images (the floor)", class_="label"), None, *floors])
    drawn = [quality([s.run for s in group], differing, name) for name in names]
    plots = [Html(svg) for svg in drawn if svg]
    protocol = tag("p", _protocol(group[0].run.evaluation), class_="note")
    return joined(protocol, table(head, rows), tag("div", *plots, class_="charts") if plots else None)


def _metrics(subject: Subject) -> dict[str, dict[str, Any]]:
    found = subject.run.evaluation.get("metrics")
    entries = found.items() if isinstance(found, dict) else ()
    return {str(name): entry for name, entry in entries if isinstance(entry, dict)}


def _metric_label(group: Iterable[Subject], name: str) -> str:
    entry = next(metrics[name] for s in group if name in (metrics := _metrics(s)))
    arrow = {"lower": " ↓", "higher": " ↑"}.get(str(entry.get("better")), "")
    return f"{entry.get('label') or name}{arrow}"


def told(entry: dict[str, Any] | None) -> Html | None:
    """`12.3 [11.9, 12.8]`; FID's extrapolation to n = infinity beside it."""
    if not entry or not is_number(entry.get("value")):
        return None
    low, high, beyond = entry.get("low"), entry.get("high"), entry.get("extrapolated")
    interval = tag("small", f" [{low:.4g}, {high:.4g}]") if is_number(low) and is_number(high) else None
    infinite = tag("small", f" (n → ∞: {beyond:.4g})") if is_number(beyond) else None
    return joined(f"{entry['value']:.4g}", interval, infinite)


def _cost(evaluations: float | None) -> str:
    return f"{evaluations:g}" if evaluations else ""  # none of images that were not drawn for this


def _floor(group: Iterable[Subject], name: str) -> Html | None:
    floors = [metrics[name].get("floor") for s in group if name in (metrics := _metrics(s))]
    entry = next((floor for floor in floors if floor is not None), None)
    return told(entry if isinstance(entry, dict) else {"value": entry})


def _protocol(evaluation: dict[str, Any]) -> str:
    """What the numbers hold for, in a sentence."""
    reference = evaluation.get("reference")
    parts = [f"{evaluation.get('num_images', '?')} images, seed {evaluation.get('seed', '?')}"]
    if isinstance(reference, dict):
        words = [str(reference[key]) for key in ("dataset", "split") if reference.get(key)]
        count = f" ({reference['num_images']} images)" if reference.get("num_images") else ""
        hashed = f", fingerprint {str(reference['fingerprint'])[:12]}" if reference.get("fingerprint") else ""
        parts.append(f"against {' '.join(words)}{count}{hashed}")
    for name in ("features", "likelihood"):
        if isinstance(known := evaluation.get(name), dict):
            knobs = (f"{key} {_short(value)}" for key, value in known.items() if value is not None)
            parts.append(f"{name}: {', '.join(knobs)}")
    return "; ".join(parts) + "."


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text[:12] if len(text) == 64 else text  # a SHA-256
