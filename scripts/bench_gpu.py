"""Speed, memory and host syncs of training and sampling on this device, beside other programs' loops.

    scripts/run python scripts/bench_gpu.py [--seconds 300] [--batch 128] [--rows eager,compile]

The network is that of the DDPM paper for CIFAR-10 (35.7 M parameters, 37.3 GFLOP a training image), on images drawn by
a formula. Rows come in order of value, each printed when it is known, until the time is spent. Beside them, where they
are installed: diffusers' network of the same size in a loop like that of its example, as the example runs it and with
what can be switched on, and denoising-diffusion-pytorch.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import bench_train  # noqa: E402
import peers  # noqa: E402
from bench_train import RECIPE  # noqa: E402

from ddpm_cli.config.check import configuration  # noqa: E402
from ddpm_cli.sampling.pipeline import build_pipeline  # noqa: E402

BEGAN = time.monotonic()
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
GFLOP = 3 * 12.44  # an image of a training step


def say(*words: object) -> None:
    print(*words, flush=True)


def now() -> float:
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(label: str, step: Callable[[], None], images: int, gflop: float = GFLOP) -> None:
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    began = now()
    step()
    first = now() - began
    for _ in range(3):
        step()
    count = ARGS.steps
    began = now()
    for _ in range(count):
        step()
    host = (time.perf_counter() - began) / count
    took = (now() - began) / count
    memory = torch.cuda.max_memory_allocated() / 2**30 if CUDA else 0.0
    speed = images / took
    say(
        f"{label:<58}{speed:8.0f} images/s {took * 1e3:8.2f} ms (host {host * 1e3:7.2f}) "
        f"{speed * gflop / 1e3:6.1f} TFLOP/s {memory:6.1f} GiB, first step {first:4.0f} s"
    )


def training_step(batch: int, *overrides: str) -> Callable[[], None]:
    torch.compiler.reset()
    return bench_train.training_step(batch, f"device={DEVICE}", *overrides)


def train_row(*overrides: str, batch: int | None = None) -> Callable[[], None]:
    images = batch or ARGS.batch
    return lambda: timed(f"train B={images} {' '.join(overrides)}", training_step(images, *overrides), images)


def syncs() -> None:
    step = training_step(ARGS.batch, "precision=bf16", "compile=false")
    for _ in range(3):
        step()
    if CUDA:
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step()
        say("host syncs in a training step: none")
    except RuntimeError as error:
        say("host sync in a training step:", str(error).splitlines()[0])
    finally:
        if CUDA:
            torch.cuda.set_sync_debug_mode("default")


def diffusers_loop(*, compiled: bool, bf16: bool, fused: bool) -> Callable[[], None]:
    """As its example runs by default, in fp32, and with what can be switched on."""

    def row() -> None:
        torch.compiler.reset()
        options = {"compiled": compiled, "bf16": bf16, "fused": fused}
        peer, x_0 = peers.diffusers_ddpm(32, 3, small=False, device=DEVICE, **options), images()
        how = f"{'bf16' if bf16 else 'fp32'}{', compiled' if compiled else ''}{', NHWC, fused' if fused else ''}"
        timed(f"diffusers' loop B={ARGS.batch} {how}", lambda: peer.step(x_0), ARGS.batch)

    return row


def lucidrains() -> None:
    """denoising-diffusion-pytorch, its U-Net at dim 128 in its Trainer's own step, in bf16 (another network: images/s
    only)."""
    peer, x_0 = peers.lucidrains(32, 3, small=False, device=DEVICE, bf16=True), images()
    size = sum(p.numel() for p in peer.network.parameters()) / 1e6
    label = f"denoising-diffusion-pytorch B={ARGS.batch} bf16, {size:.0f} M"
    timed(label, lambda: peer.step(x_0), ARGS.batch, 0.0)


def images() -> torch.Tensor:
    return torch.rand(ARGS.batch, 3, 32, 32, device=DEVICE) * 2 - 1


@contextmanager
def checkpoint() -> Iterator[Path]:
    """A run of one step, whose network draws noise: what it costs is the same."""
    from commands import run

    with tempfile.TemporaryDirectory() as folder:
        few = ["training.num_steps=1", "training.batch_size=4", "training.checkpoint_every=1", "compile=false"]
        run("train", *RECIPE, *few, f"device={DEVICE}", f"run_dir={folder}/run", cwd=Path.cwd())
        yield Path(folder, "run")


def sample_row(batch: int, *overrides: str, steps: int = 10) -> Callable[[], None]:
    def row() -> None:
        torch.compiler.reset()
        with checkpoint() as ckpt:
            words = [f"ckpt={ckpt}", f"device={DEVICE}", f"sampler.num_steps={steps}", *overrides]
            pipeline = build_pipeline(configuration("sample", *words))

        @torch.inference_mode()
        def draw() -> None:
            for _ in pipeline.walk(range(batch)):
                pass

        began = now()
        draw()
        first = now() - began
        draw()
        began = now()
        draw()
        draw()
        call = (now() - began) / 2 / steps
        say(
            f"{f'sample B={batch} ' + ' '.join(overrides):<58}{call * 1e3:8.2f} ms a call; 50,000 images "
            f"in 20 calls {call * 20 * 50_000 / batch:5.0f} s, in 50 {call * 50 * 50_000 / batch:5.0f} s; "
            f"first {first:4.0f} s"
        )

    return row


def profiled() -> None:
    from torch.profiler import ProfilerActivity, profile

    step = training_step(ARGS.batch, "precision=bf16", "compile=true")
    for _ in range(3):
        step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
    with profile(activities=activities) as found:
        for _ in range(3):
            step()
        now()
    key = "self_cuda_time_total" if CUDA else "self_cpu_time_total"
    say(found.key_averages().table(sort_by=key, row_limit=18, max_name_column_width=70))


def rows() -> dict[str, Callable[[], None]]:
    big, some = 4 * ARGS.batch, 500 if CUDA else 4
    return {
        "syncs": syncs,
        "eager": train_row("precision=bf16", "compile=false"),
        "compile": train_row("precision=bf16", "compile=true"),
        "diffusers": diffusers_loop(compiled=False, bf16=False, fused=False),
        "diffusers_bf16": diffusers_loop(compiled=False, bf16=True, fused=False),
        "sample": sample_row(some, "precision=bf16", "compile=false"),
        "sample_compile": sample_row(some, "precision=bf16", "compile=true"),
        "diffusers_best": diffusers_loop(compiled=True, bf16=True, fused=True),
        "big": train_row("precision=bf16", "compile=true", batch=big),
        "tf32": train_row("precision=tf32", "compile=true"),
        "fp32": train_row("precision=fp32", "compile=false"),
        "deterministic": train_row("precision=bf16", "compile=true", "deterministic=true"),
        "lucidrains": lucidrains,
        "sample64": sample_row(64 if CUDA else 2, "precision=bf16", "compile=false"),
        "sample_fp32": sample_row(some, "precision=fp32", "compile=false"),
        "fp16": train_row("precision=fp16", "compile=false"),
        "profile": profiled,
    }


def main() -> None:
    say(f"torch {torch.__version__}, {torch.cuda.get_device_name() if CUDA else 'cpu'}")
    table = rows()
    for name in ARGS.rows.split(",") if ARGS.rows else table:
        if time.monotonic() - BEGAN > ARGS.seconds:
            say("the time is spent before", name)
            return
        try:
            table[name]()
        except Exception as error:  # the other rows are still worth having
            say(f"{name}: {type(error).__name__}: {str(error)[:300]}")
        if CUDA:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="no row begins later than this")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30, help="timed steps of a training row")
    parser.add_argument("--rows", default="", help="names, with commas; all if empty")
    ARGS = parser.parse_args()
    main()
