"""What a sampling step costs beside the network: our DDIM and diffusers', interleaved in one run, with a trivial
network.

    scripts/run python scripts/bench_sampler_overhead.py [--device cpu] [--batch 16] [--rounds 15]

The network multiplies by a number. Ours runs inside the Denoiser, with and without clipping, as ddpm-sample does;
diffusers' loop is its pipelines' (scale_model_input and step), with the same clipping. Prints the median of the rounds'
ratios and exits with 1 where ours is above 0.6 of diffusers'.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from ddpm_cli.diffusion import prediction, samplers, schedule, variance
from ddpm_cli.diffusion.denoiser import Denoiser, clipped

SHAPE = (3, 32, 32)
STEPS = 50
GOAL = 0.6


class Trivial(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, time, cond=None):
        return x * self.weight


def ours(x_T: torch.Tensor, clip: bool) -> Callable[[], object]:
    noise_schedule = schedule.linear()
    denoiser = Denoiser(Trivial().to(x_T.device), noise_schedule, prediction.Epsilon(), variance.FixedSmall())
    denoise = clipped(denoiser) if clip else denoiser
    sampler = samplers.DDIM(STEPS)
    return lambda: samplers.run(sampler(denoise, x_T, noise_schedule, None, None))


def theirs(x_T: torch.Tensor, clip: bool) -> Callable[[], object]:
    from diffusers import DDIMScheduler

    network = Trivial().to(x_T.device)
    scheduler = DDIMScheduler(beta_schedule="linear", timestep_spacing="trailing", clip_sample=clip)
    scheduler.set_timesteps(STEPS, device=x_T.device)

    def loop() -> torch.Tensor:
        x = x_T
        for t in scheduler.timesteps:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
        return x

    return loop


def seconds(loop: Callable[[], object], device: torch.device) -> float:
    """Process time on the CPU, wall time on an accelerator."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    loop()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--batch", default=16, type=int)
    parser.add_argument("--rounds", default=15, type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    x_T = torch.randn(args.batch, *SHAPE, device=args.device)
    worst = 0.0
    for clip in (False, True):
        mine, other = ours(x_T, clip), theirs(x_T, clip)
        if not clip:  # diffusers' DDIM does not recompute the noise from the clipped estimate
            torch.testing.assert_close(mine(), other(), rtol=1e-3, atol=1e-3)
        pairs = [(seconds(mine, args.device), seconds(other, args.device)) for _ in range(args.rounds)]
        ratio = statistics.median(a / b for a, b in pairs)
        micro = [1e6 * statistics.median(column) / STEPS for column in zip(*pairs, strict=True)]
        print(f"clip={clip}: {micro[0]:.0f} us a step, diffusers {micro[1]:.0f} us, ratio {ratio:.2f} (goal {GOAL})")
        worst = max(worst, ratio)
    return int(worst > GOAL)


if __name__ == "__main__":
    raise SystemExit(main())
