"""Other programs' training steps and samplers, as their own examples have them, to be timed beside ours.

    diffusers                      UNet2DModel in the step of examples/unconditional_image_generation
    denoising-diffusion-pytorch    Unet and GaussianDiffusion in the step of its Trainer

Both are in the extra: pip install "ddpm_cli[bench]". As a program it trains one on images in memory for so many
minutes, from its own start on, and draws from it:

    scripts/run python scripts/peers.py diffusers --minutes 5 --out samples.npz dataset=mnist dataset.root=data
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

BATCH = 16  # of both, by default


@dataclass(frozen=True)
class Peer:
    """A network, a step of its training on images, and its sampler: (how many, network evaluations) -> [-1, 1]."""

    network: nn.Module
    step: Callable[[Tensor], None]
    sample: Callable[[int, int], Tensor]


def diffusers_ddpm(
    size: int,
    channels: int,
    *,
    small: bool,
    device: str,
    bf16: bool = False,
    fused: bool = False,
    compiled: bool = False,
    num_steps: int = 0,
) -> Peer:
    """small: the network of the Hugging Face course for MNIST; else that of google/ddpm-cifar10-32, 35.7 M parameters.

    num_steps: of the run, whose learning rate falls to zero along a cosine after 500 steps of warm-up, as the example's
    does; 0: constant. What the example leaves off unless asked is off here: bf16, fused, compiled.
    """
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    down = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")
    up = ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    kind: dict[str, Any] = {"block_out_channels": (128, 256, 256, 256), "attention_head_dim": None, "dropout": 0.1}
    if small:
        down, up = ("DownBlock2D", *["AttnDownBlock2D"] * 2), (*["AttnUpBlock2D"] * 2, "UpBlock2D")
        kind = {"block_out_channels": (32, 64, 64), "layers_per_block": 2}
    network: Any = UNet2DModel(
        sample_size=size, in_channels=channels, out_channels=channels, down_block_types=down, up_block_types=up, **kind
    ).to(device)
    if fused:
        network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, fused=fused or None
    )
    decay = get_cosine_schedule_with_warmup(optimizer, 500, num_steps) if num_steps else None
    ema = EMAModel(
        network.parameters(),
        decay=0.9999,
        use_ema_warmup=True,
        inv_gamma=1.0,
        power=0.75,
        model_cls=UNet2DModel,
        model_config=network.config,
    )
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    call = torch.compile(network) if compiled else network

    def step(x_0: Tensor) -> None:
        noise, t = torch.randn_like(x_0), torch.randint(0, 1000, (len(x_0),), device=x_0.device)
        with torch.autocast(x_0.device.type, torch.bfloat16, enabled=bf16):
            out = call(scheduler.add_noise(x_0, noise, t), t).sample
        torch.nn.functional.mse_loss(out.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if decay is not None:
            decay.step()
        optimizer.zero_grad()
        ema.step(network.parameters())

    @torch.inference_mode()
    def sample(count: int, evaluations: int) -> Tensor:
        ddim = DDIMScheduler.from_config(scheduler.config)
        ddim.set_timesteps(evaluations)
        x = torch.randn(count, channels, size, size, device=device)
        for t in ddim.timesteps:
            x = ddim.step(network(x, t).sample, t, x).prev_sample
        return x

    def averaged(count: int, evaluations: int) -> Tensor:
        ema.store(network.parameters())
        ema.copy_to(network.parameters())
        try:
            return sample(count, evaluations)
        finally:
            ema.restore(network.parameters())

    return Peer(network, step, averaged)


def lucidrains(size: int, channels: int, *, small: bool, device: str, bf16: bool = False) -> Peer:
    """small: its Unet at dim 32 with (1, 2, 4), for MNIST; else dim 128 with (1, 2, 2, 2), the nearest to the DDPM
    paper's network. All else as GaussianDiffusion and Trainer have it by default."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    shape: dict[str, Any] = {"dim": 32, "dim_mults": (1, 2, 4)} if small else {"dim": 128, "dim_mults": (1, 2, 2, 2)}
    network = Unet(**shape, channels=channels).to(device)
    diffusion = GaussianDiffusion(network, image_size=size, timesteps=1000, auto_normalize=False).to(device)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10)

    def step(x_0: Tensor) -> None:
        with torch.autocast(x_0.device.type, torch.bfloat16, enabled=bf16):
            loss = diffusion(x_0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    @torch.inference_mode()
    def sample(count: int, evaluations: int) -> Tensor:
        drawn = ema.ema_model
        drawn.is_ddim_sampling, drawn.sampling_timesteps = True, evaluations
        return drawn.sample(batch_size=count)

    return Peer(network, step, sample)


MAKERS: dict[str, Callable[..., Peer]] = {"diffusers": diffusers_ddpm, "denoising-diffusion-pytorch": lucidrains}


def steps_within(seconds: float, step: Callable[[Tensor], None], x_0: Tensor) -> int:
    """How many steps fit into the time, by three of them."""
    step(x_0)
    began = time.monotonic()
    for _ in range(3):
        step(x_0)
    return max(1, int(3 * seconds / (time.monotonic() - began)))


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=MAKERS)
    parser.add_argument("data", nargs="+", help="as for ddpm-train")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--evaluations", type=int, default=50, help="of the network, for an image")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    from ddpm_cli.build.trainer import build_data
    from ddpm_cli.config.check import configuration

    items = build_data(configuration("train", *args.data)).items
    channels, size = items.shape[1:3]
    torch.manual_seed(args.seed)
    make, more = MAKERS[args.peer], {}
    if args.peer == "diffusers":  # its learning rate has to know the end
        trial = make(size, channels, small=channels == 1, device="cpu")
        more["num_steps"] = steps_within(60 * args.minutes, trial.step, torch.zeros(BATCH, channels, size, size))
    peer, steps = make(size, channels, small=channels == 1, device="cpu", **more), 0
    while time.monotonic() - began < 60 * args.minutes:
        peer.step(items[torch.randint(0, len(items), (BATCH,))].float() / 127.5 - 1)
        steps += 1
    began = time.process_time()
    with torch.autocast("cpu", torch.bfloat16):  # which is not timed, and takes the longest
        drawn = [peer.sample(min(100, args.num_images - k), args.evaluations) for k in range(0, args.num_images, 100)]
    pixels = ((torch.cat(drawn).float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    print(f"{args.peer}: {steps} steps; {time.process_time() - began:.0f} s of processor time to draw", file=sys.stderr)
    np.savez(args.out, images=np.moveaxis(pixels.numpy(), 1, -1))


if __name__ == "__main__":
    main()
