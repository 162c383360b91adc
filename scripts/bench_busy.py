"""Training beside other processes: scripts/run python scripts/bench_busy.py [--busy 6] [--steps 100] [--rounds 3]

Runs of ddpm-train on digits with one thread, with as many as there are processors, and with threads=auto, in turn:
alone, and beside so many processes that do nothing but count. Images a second of the second half of the steps.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import timing

COUNT = "while True: pass"


def images_per_second(folder: Path, threads: str, steps: int) -> tuple[float, int]:
    """And how many threads there were."""
    run = folder / f"run_{len(list(folder.iterdir()))}"
    code = "from ddpm_cli.train import main; main()"
    quiet = ["training.sample_every=0", "training.heldout_every=0", f"training.log_every={steps // 2}"]
    words = ["dataset=digits", f"training.num_steps={steps}", f"threads={threads}", *quiet, f"run_dir={run}"]
    environ = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, env=environ)
    result = json.loads((run / "result.json").read_text())
    return result["metrics"]["images_per_second"], result["environment"]["threads"]


def main() -> None:
    parser = timing.parser(__doc__, rounds=3)
    parser.add_argument("--busy", type=int, default=6)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    choices = ["1", str(os.cpu_count()), "auto"]
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for busy in (0, args.busy):
            others = [subprocess.Popen([sys.executable, "-c", COUNT]) for _ in range(busy)]
            try:
                speeds = found.setdefault(f"beside {busy} busy processes" if busy else "alone", {})
                for _ in range(args.rounds):
                    for choice in choices:
                        speed, threads = images_per_second(Path(folder), choice, args.steps)
                        speeds.setdefault(choice, []).append(speed)
                        print(f"{busy} busy, threads={choice} ({threads}): {speed:.0f} images/s", file=sys.stderr)
            finally:
                for other in others:
                    other.kill()
    print(f"| images/s | threads=1 | threads={os.cpu_count()} | threads=auto | auto, of the better one |")
    print("|---|---|---|---|---|")
    for name, speeds in found.items():
        middle = [median(speeds[choice]) for choice in choices]
        print(f"| {name} | {' | '.join(f'{x:.0f}' for x in middle)} | {middle[2] / max(middle[:2]):.2f} |")
    timing.finish(timing.line("busy", busy=args.busy, rows=found), args.json)


if __name__ == "__main__":
    main()
