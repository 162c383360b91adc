"""The README's pictures of sampling, guidance and editing, from a digits checkpoint.

scripts/run python scripts/make_pictures.py CKPT [--out docs/pictures]
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from ddpm_cli.build.load import load_trained
from ddpm_cli.data.digits import digits
from ddpm_cli.diffusion import samplers
from ddpm_cli.diffusion.editing import Inpaint, Interpolate, Reconstruct, SDEdit
from ddpm_cli.diffusion.guidance import Guidance
from ddpm_cli.sampling import pictures
from ddpm_cli.sampling.animation import Animation
from ddpm_cli.sampling.edit_inputs import EditInputs
from ddpm_cli.sampling.pipeline import SamplingPipeline

SAMPLERS = [
    samplers.Ancestral(250),
    samplers.DDIM(50),
    samplers.DPMSolverPP(20),
    samplers.DPMSolverPPSDE(50),
    samplers.UniPC(20),
    samplers.GradientEstimation(20),
    samplers.Heun(18),
    samplers.ChurnedHeun(32),
]
SCALES = [0.0, 1.0, 2.0, 4.0, 8.0]
COLUMNS = 10


def pipeline_of(ckpt: Path, sampler, **knobs) -> SamplingPipeline:
    defaults = {"labels": "each", "clip": True, "guidance": Guidance()}
    return SamplingPipeline(load_trained(ckpt), sampler, torch.device("cpu"), 0, **{**defaults, **knobs})


def row(pipeline: SamplingPipeline, count: int = COLUMNS) -> Tensor:
    return pipeline.medium.to_file(samplers.run(pipeline.walk(range(count))))


def save(out: Path, name: str, items: Tensor, columns: int) -> None:
    path = pictures.save_png(pictures.grid(items, columns=columns), out / f"{name}.png")
    print(f"{path}  {path.stat().st_size / 1000:.0f} kB", flush=True)


def draw_walk(ckpt: Path, out: Path) -> None:
    pipeline = pipeline_of(ckpt, samplers.DDIM(16))  # noise does not compress: few frames of few images
    animation = Animation(pipeline.trained.denoiser.schedule, pipeline.medium)
    for step in pipeline.walk(range(6)):
        animation.add(step)
    animation.save(out)
    print(f"{out / 'walk.gif'}  {(out / 'walk.gif').stat().st_size / 1000:.0f} kB", flush=True)


def draw_edits(ckpt: Path, out: Path) -> None:
    test = digits(split="test", channels=1, image_size=8, num_classes=10)
    assert test.labels is not None
    medium = test.medium
    some = torch.stack([test.items[test.labels == label][0] for label in (3, 8, 0, 5)])
    lower = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    lower[..., 4:, :] = True
    edits = {
        "inpaint": (Inpaint(), samplers.DDIM(50, eta=1.0), EditInputs(medium, some, lower, frames=8)),
        "sdedit": (SDEdit(0.4), samplers.DDIM(50, eta=1.0), EditInputs(medium, some, frames=8)),
        "reconstruct": (Reconstruct(), samplers.DDIM(200), EditInputs(medium, some)),
        "interpolate": (Interpolate(9), samplers.DDIM(100), EditInputs(medium, some, to=some.roll(1, 0), frames=9)),
    }
    for name, (edit, sampler, inputs) in edits.items():
        pipeline = pipeline_of(ckpt, sampler, edit=edit, inputs=inputs, labels=None)
        items, columns = inputs.sheet(row(pipeline, len(inputs) * inputs.frames))
        save(out, name, items, columns)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    draw_walk(args.ckpt, args.out)
    save(args.out, "samplers", torch.cat([row(pipeline_of(args.ckpt, sampler)) for sampler in SAMPLERS]), COLUMNS)
    by_scale = [pipeline_of(args.ckpt, samplers.DPMSolverPP(20), guidance=Guidance(scale)) for scale in SCALES]
    save(args.out, "guidance", torch.cat([row(pipeline) for pipeline in by_scale]), COLUMNS)
    draw_edits(args.ckpt, args.out)


if __name__ == "__main__":
    main()
