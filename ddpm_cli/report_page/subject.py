"""What of a run's folder goes into a report: its label and colour, its pictures, its command, its environment."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ddpm_cli.config.overrides import as_command, key_of
from ddpm_cli.results.runs import Run
from ddpm_cli.results.table import Table, shown
from ddpm_cli.system import tree

_STEP = re.compile(r"step_(\d+)\.png$")
_INVOCATION = ("run_dir", "out_dir", "resume", "dry_run", "report")  # not what a run is, but where and how it was made
_MOST_PICTURES = 6  # of a folder, beside its previews
_LONGEST_VALUE = 40


@dataclass(frozen=True)
class Subject:
    """A run in the report."""

    run: Run
    number: int  # its colour, the same in every chart and table
    label: str  # its name and the settings in which it differs

    @cached_property
    def previews(self) -> dict[int, Path]:
        """Grids drawn in training, by step."""
        found = {int(match[1]): file for file in self._files("samples/*.png") if (match := _STEP.match(file.name))}
        return dict(sorted(found.items()))

    @cached_property
    def pictures(self) -> dict[str, Path]:
        """What else there is to see, by file name."""
        return {file.name: file for file in self._files("*.png")[:_MOST_PICTURES]}

    @cached_property
    def walks(self) -> list[Path]:
        """From noise to image: animations, and the last strip of a training."""
        return [*self._files("*.gif"), *self._files("samples/walk_*.png")[-1:]]

    @cached_property
    def recordings(self) -> dict[str, Path]:
        """What there is to hear, all sounds of a grid one after the other: the last preview, or what was drawn."""
        return {file.name: file for file in [*self._files("samples/step_*.wav")[-1:], *self._files("grid.wav")]}

    def _files(self, pattern: str) -> list[Path]:
        return sorted(path for path in self.run.path.glob(pattern) if path.is_file() and path.name[0] != ".")

    @cached_property
    def record(self) -> dict[str, Any]:
        """What ddpm-eval or ddpm-sample wrote of what it drew; empty for a training."""
        return self.run.evaluation or _mapping(self.run.path / "sampling.json")

    @property
    def seed(self) -> Any:
        """What the noise of its images is a function of."""
        return self.record.get("seed", self.run.setting("seed"))

    @property
    def environment(self) -> dict[str, str]:
        """What its figures may depend on beside its settings; empty where the folder does not tell."""
        told = _mapping(self.run.path / "result.json").get("environment")
        told = told if isinstance(told, dict) else {}
        versions = self.record.get("versions")
        told = {**told, **{key: self.record[key] for key in ("device", "precision") if key in self.record}}
        told |= versions if isinstance(versions, dict) else {}
        return {str(key): str(value) for key, value in told.items()}

    @property
    def command(self) -> str:
        """The command line that makes it again, in a new folder; `latest` as what it was."""
        program = "eval" if self.run.evaluation else "sample" if self.record else "train"
        source = tree.get(self.record, "source.checkpoint") or self.record.get("checkpoint")
        lost = (*_INVOCATION, "ckpt") if isinstance(source, str) else _INVOCATION
        words = [text for text in self.run.overrides if (key := key_of(text)) not in lost and key[:5] != "hydra"]
        return as_command([f"ddpm-{program}", *([f"ckpt={source}"] if isinstance(source, str) else []), *words])


def subjects(compared: Table) -> list[Subject]:
    """The runs of a table, in its order, with their labels."""
    keys = compared.settings
    last = [key.rpartition(".")[2] for key in keys]
    short = {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}
    found = []
    for number, run in enumerate(compared.runs):
        values = [f"{short[key]}={_short(run.setting(key))}" for key in keys if run.setting(key) is not None]
        found.append(Subject(run, number, " ".join([compared.name(run), *values])))
    return found


def _short(value: Any) -> str:
    text = shown(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def sweep_commands(runs: Iterable[Run]) -> dict[Path, str]:
    """The command lines of the sweeps that the runs are jobs of, by folder."""
    folders = dict.fromkeys(run.path.parent for run in runs)
    return {folder: command for folder in folders if (command := _sweep_command(folder))}


def _sweep_command(folder: Path) -> str:
    try:
        record = yaml.safe_load((folder / "multirun.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError):
        return ""
    task, own = (tree.get(record, f"hydra.overrides.{name}", []) for name in ("task", "hydra"))
    texts = [text for text in [*_list(task), *_list(own)] if isinstance(text, str)]
    where = (*_INVOCATION, "hydra.mode", "hydra.sweep.dir", "hydra.run.dir", "hydra.searchpath")
    name = tree.get(record, "hydra.job.name", "train")
    return as_command([f"ddpm-{name}", "-m", *(text for text in texts if key_of(text) not in where)])


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
