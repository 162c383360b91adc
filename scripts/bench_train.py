"""A training step beside other programs': scripts/run python scripts/bench_train.py [--batch 32] [--rounds 5]

The network of the DDPM paper for CIFAR-10 in our step as shipped (precision=auto) and in fp32, diffusers' of the same
size in the step of its example, denoising-diffusion-pytorch's nearest in that of its Trainer. Steps are timed in turn.
The paper's batches are of 128; in small ones what is done once a step (optimiser, clipping, average) weighs more.
`--parts` tells instead where the time of our step goes.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import peers  # noqa: E402
import timing  # noqa: E402

from ddpm_cli.build.trainer import assembled, build_data, build_parts, compile_network  # noqa: E402
from ddpm_cli.config.check import configuration  # noqa: E402
from ddpm_cli.training.meter import Meter  # noqa: E402
from ddpm_cli.training.nonfinite import NonFiniteMonitor  # noqa: E402

RECIPE = (
    "dataset=shapes dataset.image_size=32 dataset.num_images=4096 dataset.flip=true schedule=linear model=unet_cifar10 "
    "optimizer=ddpm prediction=epsilon variance=fixed_large weighting=epsilon timesteps=uniform ema=ddpm "
    "training.sample_every=0"
).split()
GFLOP, LUCIDRAINS = 12.44, 8.97  # of a forward pass of an image


def training_step(batch: int, *overrides: str, recipe: Sequence[str] = RECIPE) -> Callable[[], None]:
    """A step of the run with all that the loop does at every step."""
    cfg = configuration("train", *recipe, f"training.batch_size={batch}", *overrides)
    parts = build_parts(cfg)
    train_step, state = assembled(cfg, parts, build_data(cfg))
    if parts.machine.compile:
        compile_network(state.network, one_pass=train_step.one_pass)
    meter, monitor = Meter(parts.machine.device), NonFiniteMonitor(state)

    def step() -> None:
        metrics = train_step(state)
        meter.add(metrics)
        monitor.add(metrics)

    return step


def show_parts(step: Callable[[], None]) -> None:
    from torch.profiler import ProfilerActivity, profile

    step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(3):
            step()
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))


def main() -> None:
    parser = timing.parser(__doc__, rounds=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--parts", metavar="PRECISION", help="profile our step in this precision")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.parts:
        return show_parts(training_step(args.batch, f"precision={args.parts}"))
    images = torch.rand(args.batch, 3, 32, 32) * 2 - 1
    contestants = {
        "ddpm_cli": timing.Timed(training_step(args.batch), args.batch),
        "ddpm_cli, fp32": timing.Timed(training_step(args.batch, "precision=fp32"), args.batch),
    }
    if timing.installed("diffusers"):
        other = peers.diffusers_ddpm(32, 3, small=False, device="cpu")
        contestants["diffusers"] = timing.Timed(lambda: other.step(images), args.batch)
    if timing.installed("denoising_diffusion_pytorch"):
        third = peers.lucidrains(32, 3, small=False, device="cpu")
        cost = LUCIDRAINS / GFLOP
        contestants["denoising-diffusion-pytorch"] = timing.Timed(lambda: third.step(images), args.batch, cost)
    timing.in_turn(contestants, args.rounds)
    base = "diffusers" if "diffusers" in contestants else "ddpm_cli, fp32"
    print(timing.told(contestants, base, what=f"training step, batch {args.batch}", unit="images/s"))
    timing.finish(timing.as_json("train", contestants, base, batch=args.batch), args.json)


if __name__ == "__main__":
    main()
