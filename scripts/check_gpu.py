"""Exact resume on one CUDA GPU: the hashes of a run and of the same run stopped and gone on with, by precision.

    scripts/run python scripts/check_gpu.py

The runs have compile=false and deterministic=true, without which a GPU may add in another order in every run; the last
column says whether they are equal without it all the same.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]


def main() -> int:
    import torch

    if not torch.cuda.is_available():
        print("no CUDA GPU here: nothing was measured")
        return 3
    from reliability.runs import TINY

    base = [arg for arg in TINY if not arg.startswith("device=")]
    base += [
        "device=cuda",
        "compile=false",
        "model.channels=64",
        "training.num_steps=40",
        "training.checkpoint_every=10",
    ]
    failed = False
    print(f"{'precision':<10} {'stop':>4} {'resumed is the same':>20} {'so without deterministic=true':>30}")
    for precision in ("fp32", "bf16", "fp16"):
        for stop in (10, 13, 20):
            args = [*base, f"precision={precision}"]
            exact, loose = (_same([*args, f"deterministic={on}"], stop) for on in ("true", "false"))
            failed |= not exact
            print(f"{precision:<10} {stop:>4} {'yes' if exact else 'NO':>20} {'yes' if loose else 'no':>30}")
    return int(failed)


def _same(args: list[str], stop: int) -> bool:
    """Whether a run stopped at a step and gone on with ends as the uninterrupted one."""
    from reliability.runs import state_of

    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder, "whole"), Path(folder, "parts")
        _train([*args, f"run_dir={whole}"])
        _train([*args, f"run_dir={parts}", f"training.stop_at={stop}"])
        _train([f"resume={parts}"])
        return state_of(whole) == state_of(parts)


def _train(args: list[str]) -> None:
    from commands import run

    run("train", *args, cwd=Path.cwd())


if __name__ == "__main__":
    raise SystemExit(main())
