"""Exact resume on this CUDA GPU: the hashes of a run and of the same run stopped and gone on with in a fresh process.

    scripts/run python scripts/check_gpu.py [--seconds 90]

The network has the kernels of the CIFAR-10 recipe (32x32 pixels, half its width and fewer blocks). With
deterministic=true both must be equal, in every precision, compiled and not; the last column says whether they are so
without it. What does not fit into the time is told, not run.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
RUN = (
    "dataset=shapes dataset.image_size=32 dataset.num_images=512 dataset.flip=true schedule=linear model=unet_cifar10 "
    "model.channels=64 model.blocks_per_level=1 prediction=epsilon training.batch_size=32 training.num_steps=16 "
    "training.checkpoint_every=8 training.sample_every=0 training.stop_at=null device=cuda"
).split()
CASES = [("bf16", "true"), ("bf16", "false"), ("fp32", "false"), ("fp16", "false"), ("tf32", "false")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90, help="no case begins later than this")
    seconds = parser.parse_args().seconds
    import torch

    if not torch.cuda.is_available():
        print("no CUDA GPU here: nothing was measured")
        return 3
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    print(
        f"{'precision':<10} {'compile':<8} {'resumed is the same':>20} {'without deterministic=true':>28}", flush=True
    )
    began, failed = time.monotonic(), False
    for precision, compiled in CASES:
        if time.monotonic() - began > seconds:
            print(f"{precision:<10} {compiled:<8} {'no time was left':>20}")
            continue
        args = [*RUN, f"precision={precision}", f"compile={compiled}"]
        exact = same([*args, "deterministic=true"])
        loose = same(args) if (precision, compiled) == CASES[1] else None
        failed |= not exact
        said = {True: "yes", False: "no", None: "-"}
        print(f"{precision:<10} {compiled:<8} {'yes' if exact else 'NO':>20} {said[loose]:>28}", flush=True)
    return int(failed)


def same(args: list[str]) -> bool:
    """Whether a run stopped at a step between two checkpoints and gone on with ends as the uninterrupted one."""
    from reliability.runs import state_of

    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder, "whole"), Path(folder, "parts")
        first = train([*args, f"run_dir={whole}"]), train([*args, f"run_dir={parts}", "training.stop_at=5"])
        ended(*first)  # both at once: to start takes longer than to train
        ended(train([f"resume={parts}", "training.stop_at=null"]))
        return state_of(whole) == state_of(parts)


def train(args: list[str]) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "ddpm_cli.train", *args]
    return subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def ended(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        error = process.communicate()[1]
        if process.returncode:
            raise SystemExit(f"{' '.join(process.args)}\n{error[-2000:]}")  # type: ignore[arg-type]


if __name__ == "__main__":
    raise SystemExit(main())
