"""How long a command takes before it does its work: scripts/run python scripts/bench_startup.py [--rounds 5]

In turn, each in a process of its own, on an idle machine: the floor (import torch, build an AdamW, one step of a
convolution), the first training step of `ddpm-train` on digits, its first words, and `ddpm-train --help`.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

import timing  # noqa: E402

FLOOR = """
import torch
layer = torch.nn.Conv2d(1, 8, 3)
optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
layer(torch.zeros(8, 1, 8, 8)).square().mean().backward()
optimizer.step()
print("step 1", flush=True)
"""
TRAIN = ["-c", "from ddpm_cli.train import main; main()"]
ONE = (
    "dataset=digits training.num_steps=1 training.log_every=1 training.sample_every=0 training.heldout_every=0".split()
)


def until(words: list[str], said: str) -> Callable[[], float]:
    """Seconds until the process has said it; what it does after that is not counted."""

    def measured() -> float:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
        )
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if said in line:
                took = time.perf_counter() - began
                process.communicate()
                return took
        raise SystemExit(f"{words}: never said {said!r}:\n{''.join(lines)}")

    return measured


def main() -> None:
    parser = timing.parser(__doc__, rounds=5)
    args = parser.parse_args()
    works = {
        "floor": until(["-c", FLOOR], "step 1"),
        "first training step": until([*TRAIN, *ONE], "step 1"),
        "first words": until([*TRAIN, *ONE], ""),
        "--help": until([*TRAIN, "--help"], "Exit codes"),
    }
    took: dict[str, list[float]] = {name: [] for name in works}
    for number in range(args.rounds + 1):
        for name, work in works.items():
            seconds = work()
            if number:  # the first round reads files that are not in memory yet
                took[name].append(seconds)
    print("| | seconds | over the floor |\n|---|---|---|")
    for name, seconds in took.items():
        over = sorted(a - b for a, b in zip(seconds, took["floor"], strict=True))
        middle = sorted(seconds)[len(seconds) // 2]
        print(f"| {name} | {middle:.2f} | {over[len(over) // 2]:+.2f} [{over[0]:+.2f}, {over[-1]:+.2f}] |")
    timing.finish(timing.line("startup", rows=took), args.json)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main()
