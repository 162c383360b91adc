"""Measures on a digits checkpoint: samplers' class accuracy, the guidance table, the reconstruction of real digits.

    scripts/run python scripts/check_samplers.py accuracy CKPT [--num-images 2000] [--samplers heun ancestral ...]
    scripts/run python scripts/check_samplers.py guidance CKPT [--num-images 500] [--guide EARLIER_CKPT]
    scripts/run python scripts/check_samplers.py reconstruction CKPT [--num-images 200]

Accuracy is that of a support vector machine trained on the real digits (98 % or so on the held-out ones) on images
drawn for all classes in turn from the same seeds; diversity the mean distance between two images of a class, in the
model's range.
"""

import argparse
import time
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ddpm_cli.build.load import load_denoiser, load_trained
from ddpm_cli.build.model import null_label
from ddpm_cli.data.digits import digits
from ddpm_cli.data.store import Store
from ddpm_cli.diffusion import samplers
from ddpm_cli.diffusion.editing import Reconstruct, Source
from ddpm_cli.diffusion.guidance import CADS, Guidance
from ddpm_cli.sampling.pipeline import SamplingPipeline

SAMPLERS = {
    "heun": samplers.Heun(18),
    "dpmpp": samplers.DPMSolverPP(20),
    "dpmpp log_snr": samplers.DPMSolverPP(20, "log_snr"),
    "unipc": samplers.UniPC(20),
    "gradient": samplers.GradientEstimation(20),
    "ddim": samplers.DDIM(50),
    "dpmpp_sde": samplers.DPMSolverPPSDE(50),
    "euler": samplers.Euler(50),
    "dpm2": samplers.DPM2(18),
    "edm": samplers.ChurnedHeun(64),
    "ancestral": samplers.Ancestral(1000),
    "consistency 1": samplers.Consistency(1),
    "consistency 2": samplers.Consistency(2),
}


def store_of(split: str) -> Store:
    return digits(split=split, channels=1, image_size=8, num_classes=10)


@cache
def classifier():
    from sklearn.svm import SVC

    train, test = store_of("train"), store_of("test")
    model = SVC(gamma=0.001 * (16 / 255) ** 2, C=10).fit(train.items.flatten(1).numpy(), train.labels.numpy())
    print(f"classifier: {100 * model.score(test.items.flatten(1).numpy(), test.labels.numpy()):.1f} % on real digits")
    return model


def pipeline_of(path: Path, sampler, **knobs) -> SamplingPipeline:
    trained = load_trained(path)
    defaults = {"labels": "each", "clip": True, "guidance": Guidance()}
    return SamplingPipeline(trained, sampler, torch.device("cpu"), 0, **{**defaults, **knobs})


@torch.inference_mode()
def drawn(pipeline: SamplingPipeline, count: int, batch: int = 250) -> tuple[Tensor, Tensor]:
    """uint8 images and their labels."""
    images = []
    for start in range(0, count, batch):
        images.append(pipeline.medium.to_file(samplers.run(pipeline.walk(range(start, min(start + batch, count))))))
    labels = pipeline.labels_of(range(count))
    assert labels is not None
    return torch.cat(images), labels


def accuracy(images: Tensor, labels: Tensor) -> float:
    """In percent."""
    return 100 * float(classifier().score(images.flatten(1).numpy(), labels.numpy()))


def diversity(images: Tensor, labels: Tensor) -> float:
    rows = images.flatten(1).float() / 127.5 - 1
    means = [torch.nn.functional.pdist(rows[labels == label]).mean() for label in labels.unique()]
    return float(torch.stack(means).mean())


def report(name: str, pipeline: SamplingPipeline, count: int) -> None:
    start = time.process_time()
    images, labels = drawn(pipeline, count)
    figures = f"accuracy {accuracy(images, labels):5.1f} %  diversity {diversity(images, labels):.2f}"
    print(f"{name:<28} {figures}  {time.process_time() - start:.0f} s", flush=True)


def check_accuracy(args) -> None:
    test = store_of("test")
    assert test.labels is not None
    print(f"real digits, diversity {diversity(test.items, test.labels):.2f}; {args.num_images} images of {args.ckpt}")
    for name in args.samplers or [name for name in SAMPLERS if "consistency" not in name]:  # those are of tuned models
        report(name, pipeline_of(args.ckpt, SAMPLERS[name]), args.num_images)


def check_guidance(args) -> None:
    sampler = samplers.DPMSolverPP(20)
    for scale in (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0):
        report(f"scale {scale}", pipeline_of(args.ckpt, sampler, guidance=Guidance(scale)), args.num_images)
    cases = {
        "scale 3, interval [0.3, 5]": {"guidance": Guidance(3.0, (0.3, 5.0))},
        "scale 3, rescale 0.7": {"guidance": Guidance(3.0, rescale=0.7)},
        "scale 3, dynamic": {"guidance": Guidance(3.0), "clip": "dynamic"},
        "scale 3, cads 0.25": {"guidance": Guidance(3.0), "cads": CADS(0.25)},
    }
    if args.guide is not None:
        guide = load_denoiser(args.guide)
        cases |= {f"autoguidance {s}": {"guidance": Guidance(s), "guide": guide} for s in (1.5, 2.0, 3.0)}
    for name, knobs in cases.items():
        report(name, pipeline_of(args.ckpt, sampler, **knobs), args.num_images)


@torch.inference_mode()
def check_reconstruction(args) -> None:
    test, trained = store_of("test"), load_trained(args.ckpt)
    denoiser, items = trained.denoiser, test.items[: args.num_images]
    null = torch.full((len(items),), null_label(denoiser.network) or 0)
    source = Source(test.to_model(items))
    for spacing in (None, "karras"):
        for num_steps in (20, 50, 100, 200):
            sampler = samplers.DDIM(num_steps, spacing)
            steps = Reconstruct()(
                lambda x, t: denoiser(x, t, {"labels": null}), sampler, denoiser.schedule, None, torch.randn, source
            )
            error = ((samplers.run(steps).clamp(-1, 1) - source.image) ** 2).flatten(1).mean(1)
            psnr = 10 * torch.log10(4 / error)
            figures = f"mean {psnr.mean():.1f} dB, median {psnr.median():.1f}, least {psnr.min():.1f}"
            print(f"{num_steps:>4} steps, spacing {spacing}: PSNR {figures}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accuracy", "guidance", "reconstruction"])
    parser.add_argument("ckpt", type=Path)
    parser.add_argument("--num-images", type=int)
    parser.add_argument("--samplers", nargs="*", choices=list(SAMPLERS))
    parser.add_argument("--guide", type=Path)
    args = parser.parse_args()
    args.num_images = args.num_images or {"accuracy": 2000, "guidance": 500, "reconstruction": 200}[args.what]
    {"accuracy": check_accuracy, "guidance": check_guidance, "reconstruction": check_reconstruction}[args.what](args)


if __name__ == "__main__":
    main()
