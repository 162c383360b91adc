"""Puts faults into runs, by the hundred, and prints a table: goal, trials, failures. On two cores about an hour.

    scripts/run python scripts/check_reliability.py               all goals
    scripts/run python scripts/check_reliability.py R1 R13        some
    scripts/run python scripts/check_reliability.py --short       few trials of each, as `pytest -m slow` does

A mount of a small disk (R5) and a user who is not root (R11) are tried where the right to them is there.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

# Before torch is imported: one thread, since every trial is a forked child.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "HYDRA_FULL_ERROR"):
    os.environ.pop(name, None)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, here and in every trial
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("goals", nargs="*", help="R1 ... R21; all if none is named")
    parser.add_argument("--short", action="store_true", help="few trials of each")
    parser.add_argument("--json", type=Path, help="also write what was found to this file")
    arguments = parser.parse_args()
    from reliability.goals import main

    raise SystemExit(main(arguments.goals, short=arguments.short, to=arguments.json))
