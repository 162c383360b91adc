"""evaluation.json: each number with the protocol it depends on, and whether a folder's features are of the same one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm_cli import __version__
from ddpm_cli.errors import UserError
from ddpm_cli.evaluation.evaluator import Evaluator
from ddpm_cli.evaluation.likelihood import Likelihood
from ddpm_cli.evaluation.metrics import Score, label_of
from ddpm_cli.evaluation.metrics.base import CONFIDENCE
from ddpm_cli.evaluation.source import Found
from ddpm_cli.evaluation.subject import Subject
from ddpm_cli.sampling.record import record_of
from ddpm_cli.system.files import write_text

NAME = "evaluation.json"
SCHEMA = 1
# May differ between two invocations that make one evaluation: of the source its place and the file's other content.
_MAY_DIFFER = {"schema", "num_images", "network_evaluations", "device", "metrics", "versions", "seconds", "lora"}
_IF_ASKED = ("reference", "features", "likelihood")  # null where no metric asks for it
_SAME_SOURCE = ("model_sha256", "images_sha256")


def read(out: Path) -> dict[str, Any] | None:
    """The record of a folder; None if there is none."""
    try:
        found = json.loads((out / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("source"), dict) else None


def protocol(subject: Subject, evaluator: Evaluator | None) -> dict[str, Any]:
    """The record before anything is measured: all that its numbers will depend on."""
    cfg, source = subject.cfg, subject.source
    if isinstance(source, Found):
        drawn: dict[str, Any] = {"images": str(source.path.resolve()), "images_sha256": source.sha256}
        versions: Any = {"ddpm_cli": __version__, "torch": str(torch.__version__), "numpy": np.__version__}
        rest = {"num_images": subject.total, "network_evaluations": 0.0, "device": str(subject.device)}
    else:
        assert subject.pipeline is not None
        rest = record_of({**cfg, "edit": None}, subject.pipeline, subject.total)
        versions = rest.pop("versions")
        drawn = {key: rest.pop(key) for key in ("checkpoint", "sha256", "model_sha256", "step")}
        rest["network_evaluations"] = rest.pop("edit")  # of an image; known when one was drawn
    return {
        "schema": SCHEMA,
        "source": drawn,
        **rest,
        "reference": evaluator and evaluator.reference.describe(),
        "features": evaluator and evaluator.features.describe(),
        "likelihood": subject.likelihood and _of_likelihood(cfg, subject.likelihood),
        "metrics": {},
        "versions": versions,
    }


def _of_likelihood(cfg: Mapping[str, Any], likelihood: Likelihood) -> dict[str, Any]:
    knobs = {key: value for key, value in cfg["nll"].items() if key != "num_images"}
    return {"dataset": likelihood.store.name, "fingerprint": likelihood.store.fingerprint, **knobs}


def agreed(out: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The record, with what the folder's own says of what is kept there and not asked for now; UserError where the
    folder keeps what this command line would not find."""
    if not any(any((out / name).glob("*.npz")) for name in ("features", "likelihood")):
        return record
    before = read(out)
    if before is None:
        raise UserError(f"out_dir={out} holds an evaluation of unknown origin; choose another out_dir")
    record = {**record, **{key: before.get(key) for key in _IF_ASKED if record[key] is None}}
    for key in record:
        old, new = before.get(key), record[key]
        if key == "source":
            old, new = ({name: found.get(name) for name in _SAME_SOURCE} for found in (before[key], record[key]))
        if key not in _MAY_DIFFER and old != new and not (old is None and key in _IF_ASKED):
            raise UserError(
                f"out_dir={out} holds an evaluation of another kind ({key}: {_short(old)}, now {_short(new)}); "
                "choose another out_dir"
            )
    return record


def write(out: Path, record: Mapping[str, Any]) -> None:
    write_text(out / NAME, json.dumps(record, indent=2) + "\n")


def entry(name: str, score: Score, floor: float | None) -> dict[str, Any]:
    """A metric as evaluation.json has it. floor: what real images that the reference does not hold get."""
    return {
        "value": score.value,
        "low": score.low,
        "high": score.high,
        "confidence": CONFIDENCE,
        "n": score.n,
        "label": label_of(name, score.n),
        "floor": floor,
        "better": score.better,
        **score.extra,
    }


def flat(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """As result.json has them: NAME, NAME_low and NAME_high."""
    ends = (("", "value"), ("_low", "low"), ("_high", "high"))
    return {f"{name}{end}": entry[key] for name, entry in metrics.items() for end, key in ends}


def table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """What a person reads: a line a metric."""
    rows = [("metric", "value", "95 % interval", "real images", "better")]
    for entry in metrics.values():
        floor = "-" if entry["floor"] is None else f"{entry['floor']:.4g}"
        interval = f"{entry['low']:.4g} to {entry['high']:.4g}"
        rows.append((entry["label"], f"{entry['value']:.4g}", interval, floor, entry["better"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
