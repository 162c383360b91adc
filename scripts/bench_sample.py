"""Drawing images beside other programs: scripts/run python scripts/bench_sample.py [--batch 8] [--steps 10]

The network of the DDPM paper for CIFAR-10 with random weights, by DDIM in so many steps: as ddpm-sample does it
(precision=auto) and in fp32, diffusers' of the same size in its pipeline's loop, denoising-diffusion-pytorch's nearest
by its own ddim_sample. Whole batches are timed in turn.
"""

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import peers  # noqa: E402
import timing  # noqa: E402
from bench_train import GFLOP, LUCIDRAINS, RECIPE  # noqa: E402
from commands import run  # noqa: E402

from ddpm_cli.config.check import configuration  # noqa: E402
from ddpm_cli.sampling.pipeline import build_pipeline  # noqa: E402


def checkpoint(folder: str) -> Path:
    """A run of one step, whose network draws noise: what it costs is the same."""
    few = ["training.num_steps=1", "training.batch_size=4", "training.checkpoint_every=1", "training.heldout_every=0"]
    run("train", *RECIPE, *few, f"run_dir={folder}/run", cwd=Path(folder))
    return Path(folder, "run")


def ours(ckpt: Path, batch: int, steps: int, *overrides: str) -> Callable[[], object]:
    words = [f"ckpt={ckpt}", "sampler=ddim", f"sampler.num_steps={steps}", *overrides]
    pipeline = build_pipeline(configuration("sample", *words))
    return lambda: list(pipeline.walk(range(batch)))


def main() -> None:
    parser = timing.parser(__doc__, rounds=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        ckpt = checkpoint(folder)
        drawn = partial(ours, ckpt, args.batch, args.steps)
        contestants = {
            "ddpm_cli": timing.Timed(drawn(), args.batch),
            "ddpm_cli, fp32": timing.Timed(drawn("precision=fp32"), args.batch),
        }
    if timing.installed("diffusers"):
        other = peers.diffusers_ddpm(32, 3, small=False, device="cpu")
        other.network.eval()
        contestants["diffusers"] = timing.Timed(lambda: other.sample(args.batch, args.steps), args.batch)
    if timing.installed("denoising_diffusion_pytorch"):
        third = peers.lucidrains(32, 3, small=False, device="cpu")
        contestants["denoising-diffusion-pytorch"] = timing.Timed(
            lambda: third.sample(args.batch, args.steps), args.batch, LUCIDRAINS / GFLOP
        )
    with torch.inference_mode():
        timing.in_turn(contestants, args.rounds)
    base = "diffusers" if "diffusers" in contestants else "ddpm_cli, fp32"
    print(timing.told(contestants, base, what=f"{args.steps} steps of DDIM, batch {args.batch}", unit="images/s"))
    timing.finish(timing.as_json("sample", contestants, base, batch=args.batch, steps=args.steps), args.json)


if __name__ == "__main__":
    main()
