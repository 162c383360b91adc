"""Things timed in turn, so that whatever else the machine does falls on all of them alike; told as a table and as one
line of JSON with hardware, versions and date."""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch

PACKAGES = ("ddpm_cli", "torch", "diffusers", "denoising-diffusion-pytorch")


@dataclass
class Timed:
    """A contestant: `work` makes `count` things; `cost` is that of one beside the others' (1: the same)."""

    work: Callable[[], object]
    count: int = 1
    cost: float = 1.0
    process: list[float] = field(default_factory=list)  # seconds of a call, a round each
    wall: list[float] = field(default_factory=list)

    def call(self) -> None:
        began, cpu = time.perf_counter(), time.process_time()
        self.work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.process.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - began)

    def seconds(self, clock: str) -> list[float]:
        return [took / self.count for took in getattr(self, clock)]


def in_turn(contestants: dict[str, Timed], rounds: int) -> None:
    """Each once to warm up, then each once a round, in an order that turns."""
    for name, timed in contestants.items():
        timed.work()
        print(f"warmed up: {name}", file=sys.stderr, flush=True)
    names = list(contestants)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            contestants[name].call()
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)


def ratios(timed: Timed, base: Timed, clock: str) -> list[float]:
    """How many times as fast as `base`, a round each, at equal cost."""
    pairs = zip(timed.seconds(clock), base.seconds(clock), strict=True)
    return [timed.cost / base.cost * theirs / ours for ours, theirs in pairs]


def told(contestants: dict[str, Timed], base: str, *, what: str, unit: str, clock: str = "process") -> str:
    """A Markdown table; `x` is the median of the rounds' ratios to `base`, with the least and the largest."""
    lines = [f"| {what} | {unit} (process time) | {unit} (wall) | x {base} |", "|---|---|---|---|"]
    for name, timed in contestants.items():
        speeds = [1 / median(timed.seconds(each)) for each in ("process", "wall")]
        times = ratios(timed, contestants[base], clock)
        spread = "" if name == base else f" [{min(times):.2f}, {max(times):.2f}]"
        cost = "" if timed.cost == 1 else f", at equal FLOPs (a step has {timed.cost:.2f} of them)"
        lines.append(f"| {name} | {speeds[0]:.4g} | {speeds[1]:.4g} | {median(times):.2f}{spread}{cost} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures are of."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = models[0] if models else model
    versions: dict[str, str] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": date.today().isoformat(), "cpu": model, "threads": torch.get_num_threads(), "gpu": gpu,
        "versions": versions,
    }  # fmt: skip


def as_json(bench: str, contestants: dict[str, Timed], base: str, **settings: Any) -> str:
    rows = {
        name: {
            "process_s": median(timed.seconds("process")),
            "wall_s": median(timed.seconds("wall")),
            "ratios_process": [round(x, 4) for x in ratios(timed, contestants[base], "process")],
            "ratios_wall": [round(x, 4) for x in ratios(timed, contestants[base], "wall")],
        }
        for name, timed in contestants.items()
    }
    return line(bench, base=base, **settings, rows=rows)


def line(bench: str, **values: Any) -> str:
    return json.dumps({"bench": bench, **machine(), **values})


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--threads", type=int, default=1, help="of more, process time counts their waiting")
    made.add_argument("--json", type=Path, help="a file to which the line of JSON is added")
    return made


def finish(line: str, path: Path | None) -> None:
    print(line)
    if path is not None:
        with open(path, "a") as file:
            file.write(line + "\n")


def installed(*modules: str) -> Sequence[str]:
    """Those that can be imported."""
    from importlib.util import find_spec

    return [module for module in modules if find_spec(module) is not None]
