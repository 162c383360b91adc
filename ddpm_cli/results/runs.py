"""Runs read back from their folders, finished or not, however little is in them."""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import yaml

try:
    from yaml import CSafeLoader as Loader  # ten times as fast; a sweep may have hundreds of jobs
except ImportError:
    from yaml import SafeLoader as Loader  # type: ignore[assignment]

from ddpm_cli.config.overrides import key_of
from ddpm_cli.run_dir.hydra_record import INVOCATION_KEYS, record_of
from ddpm_cli.system import tree
from ddpm_cli.system.lock import Busy, lock

# In a run's folder, one of these; nothing of a run is below the others.
_MARKS = ("result.json", "metrics.jsonl", "evaluation.json", "sampling.json", ".hydra/overrides.yaml")
_INNER = {"samples", "images", "checkpoints", "tensorboard", "nonfinite"}
_INTEGER = re.compile(r"[+-]?\d+")

T = TypeVar("T")
Curves = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class Run:
    """A run or job as its folder tells it; what the folder does not tell is empty."""

    path: Path
    name: str  # `name=`, else the folder's
    status: str  # done, failed, refused, interrupted, running, unknown
    overrides: list[str]  # `key=value`, those that an earlier invocation was given too
    choices: dict[str, str | None]  # group -> option
    config: dict[str, Any]
    metrics: dict[str, float]  # with an interval also NAME_low and NAME_high; of a run cut off the last logged
    error: str = ""
    seconds: float | None = None
    step: int | None = None

    @cached_property
    def curves(self) -> Curves:
        """What was logged over the steps, by name: [(step, value), ...] in the order of the steps."""
        return read_curves(self.path)

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """What ddpm-eval wrote: protocol and metrics."""
        return _mapping(self.path / "evaluation.json")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What was typed, by key, numbers as numbers; without what one invocation was about."""
        typed = {key_of(text): text.partition("=")[2] for text in self.overrides if "=" in text}
        return {
            key: value_of(text)
            for key, text in typed.items()
            if key not in (*INVOCATION_KEYS, "out_dir", "name", "report") and not key.startswith("hydra")
        }

    def setting(self, key: str) -> Any:
        """What a key had in this run, typed or not; None where the run has no such key."""
        if key in self.settings:
            return self.settings[key]
        value = self.choices[key] if key in self.choices else tree.get(self.config, key)
        return json.dumps(value, separators=(",", ":")) if isinstance(value, list | dict) else value


def read(paths: Iterable[Path | str]) -> list[Run]:
    """The runs at and below these folders, each once: jobs in the order of their numbers, others in that of time."""
    found = {folder.resolve(): folder for path in paths for folder in _folders(Path(path))}
    return [read_run(folder) for folder in found.values()]


def read_run(folder: Path) -> Run:
    """One run. A file that is missing, half written or not what it should be counts as empty."""
    result, record = _mapping(folder / "result.json"), record_of(folder)
    hydra = _of_kind(dict, tree.get(_mapping(record / "hydra.yaml"), "hydra.runtime.choices"))
    config = _mapping(folder / "config.yaml") or _mapping(record / "config.yaml")
    overrides = _of_kind(list, _parsed(record / "overrides.yaml")) or _of_kind(list, result.get("overrides"))
    metrics = {**_evaluated(folder), **_of_kind(dict, result.get("metrics"))} or last_logged(folder)
    seconds, step = result.get("seconds"), result.get("step")
    return Run(
        path=folder,
        name=str(config.get("name") or folder.name),
        status=_status(folder, result),
        overrides=[text for text in overrides if isinstance(text, str)],
        choices={str(k): v for k, v in hydra.items() if v is not None and "/" not in str(k) and str(k)[0] != "_"},
        config=config,
        metrics={str(k): v for k, v in metrics.items() if is_number(v)},
        error=str(result.get("error") or ""),
        seconds=seconds if is_number(seconds) and math.isfinite(seconds) else None,
        step=step if isinstance(step, int) else None,
    )


def read_curves(folder: Path) -> Curves:
    """metrics.jsonl by name; a torn line is left out."""
    curves: Curves = {}
    with contextlib.suppress(OSError), open(folder / "metrics.jsonl", encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, OverflowError):
                values = json.loads(line)
                step = int(values.pop("step"))
                for name, value in values.items():
                    if is_number(value):
                        curves.setdefault(name, []).append((step, value))
    return curves


def last_logged(folder: Path) -> dict[str, float]:
    """The last value of each name in metrics.jsonl: an evaluation's line is not one of every log step."""
    return {name: points[-1][1] for name, points in read_curves(folder).items()}


def _evaluated(folder: Path) -> dict[str, Any]:
    """The metrics of evaluation.json as result.json has them."""
    told = _mapping(folder / "evaluation.json")
    found = {"network_evaluations": told.get("network_evaluations")}
    for name, entry in _of_kind(dict, tree.get(told, "metrics")).items():
        for ending, key in (("", "value"), ("_low", "low"), ("_high", "high")):
            found[f"{name}{ending}"] = tree.get(entry, key)
    return {name: value for name, value in found.items() if is_number(value)}


def value_of(text: str) -> Any:
    """What an override's text says, where that is a number, true, false or null; else the text without its quotes."""
    plain = {"true": True, "false": False, "null": None}
    if text.lower() in plain:
        return plain[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        return text[1:-1] if quoted else text.replace(", ", ",")  # lists as `setting` has those of a configuration


def is_run(folder: Path) -> bool:
    """Whether a run or job left its files here."""
    return any((folder / mark).exists() for mark in _MARKS)


def sweep_of(run: Path) -> Path | None:
    """The folder of the sweep that made this run as one of its jobs; None of a single run."""
    made = tree.get(_mapping(run / ".hydra/hydra.yaml"), "hydra.mode")
    return run.parent if made == "MULTIRUN" else None


def is_sweep(folder: Path) -> bool:
    """Whether jobs of a sweep lie in this folder."""
    return folder.is_dir() and any(sweep_of(inner) for inner in folder.iterdir() if is_run(inner))


def _folders(root: Path) -> Iterator[Path]:
    for folder, names, _ in os.walk(root):
        names[:] = sorted((name for name in names if name[0] != "." and name not in _INNER), key=_natural)
        if is_run(Path(folder)):
            yield Path(folder)


def _natural(name: str) -> list[Any]:
    """For sorting: 2 before 10."""
    return [
        (not part.isdecimal(), int(part) if part.isdecimal() else part) for part in re.split(r"(\d+)", name) if part
    ]


def _status(folder: Path, result: Mapping[str, Any]) -> str:
    """As the result says; a run that was killed could not say how it ended, but its lock is free."""
    if not result and (folder / "sampling.json").exists():  # ddpm-sample leaves no result but its images
        return "done" if (folder / "samples.npz").exists() else "interrupted"
    status = str(result.get("status") or "unknown")
    if status != "running":
        return status
    try:
        with open(folder / ".lock", "rb") as file:
            return "interrupted" if lock(file) else status
    except (Busy, OSError):
        return status


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number, which may be inf or nan, that a float holds: JSON's whole numbers have no bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 10**300


def _of_kind(kind: type[T], value: Any) -> T:
    return value if isinstance(value, kind) else kind()


def _mapping(file: Path) -> dict[str, Any]:
    return _of_kind(dict, _parsed(file))


def _parsed(file: Path) -> Any:
    try:
        text = file.read_text(encoding="utf-8")
        return json.loads(text) if file.suffix == ".json" else Loader(text).get_single_data()
    except (OSError, ValueError, yaml.YAMLError):
        return None
