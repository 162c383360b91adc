"""The pictures that the same minutes give: scripts/run python scripts/bench_quality.py mnist --root data --out bench

Each contestant has the machine to itself for so many minutes, from the start of its process, with what its own example
or default says; then draws images, which `ddpm-eval` compares with the training images, all by one classifier. A table,
a line of JSON, and OUT/side_by_side.png with 40 images of each, in the order of the table. `photos` takes a folder of
images in --root. The same command goes on where it was stopped, and with further seeds or contestants.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from ddpm_cli.build.trainer import build_data
from ddpm_cli.config.check import configuration
from ddpm_cli.sampling.pictures import grid, save_png

ROOT = Path(__file__).resolve().parent.parent
import timing  # noqa: E402

_GAP = 16  # pixels between contestants
DATA = {"mnist": "dataset=mnist", "photos": "dataset=image_folder"}
NAMES = ("ddpm_cli", "denoising-diffusion-pytorch", "diffusers")


def command(door: str, *words: str) -> str:
    """Runs a door of this program; the last line of what it says on stdout."""
    code = f"from ddpm_cli.{door} import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().rpartition("\n")[2]


def finished(run: Path) -> bool:
    result = run / "result.json"
    return result.exists() and json.loads(result.read_text())["status"] == "done"


def train_ours(data: list[str], args: argparse.Namespace, seed: int, out: Path) -> str:
    """ddpm-train with a budget and nothing else but what --ours adds."""
    run = out / "run"
    if not finished(run):  # a training that was stopped has had its minutes, and begins anew
        shutil.rmtree(run, ignore_errors=True)
        command("train", *data, f"budget={args.minutes:g}m", f"seed={seed}", f"run_dir={run}", *args.ours.split())
    labels = ["labels=each"] if args.labelled else []
    drawn = [f"ckpt={run}", f"num_images={args.num_images}", *labels, f"out_dir={out / 'samples'}"]
    command("sample", *drawn, *args.draw.split())
    return f"ckpt={run}"


def train_peer(name: str, data: list[str], args: argparse.Namespace, seed: int, out: Path) -> str:
    """In a process of its own, whose imports count as well."""
    out.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, str(ROOT / "scripts/peers.py"), name, "--minutes", str(args.minutes), "--seed", str(seed)]
    words += ["--num-images", str(args.num_images), "--evaluations", str(args.evaluations)]
    if not (out / "samples.npz").exists():
        subprocess.run([*words, "--out", str(out / "samples.npz"), *data], check=True)
    return f"images={out / 'samples.npz'}"


def scored(source: str, data: list[str], args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """ddpm-eval's figures of a contestant's images."""
    metrics = ["metrics=[fid]", f"data={'mnist' if args.data_name == 'mnist' else args.root}", f"data_root={args.root}"]
    if source.startswith("ckpt="):
        labelled = ["metrics=[fid,accuracy]", "labels=each"] if args.labelled else ["metrics=[fid]"]
        metrics = [*labelled, f"num_images={args.num_images}", *args.draw.split()]
    folder = command("eval", source, "features=classifier", f"out_dir={out / 'eval'}", *metrics)
    return json.loads((Path(folder) / "evaluation.json").read_text())["metrics"]


def images_of(name: str, seed: int, args: argparse.Namespace) -> np.ndarray:
    """(N, H, W, C) uint8."""
    file = args.out / f"{name}-{seed}" / ("samples/samples.npz" if name == "ddpm_cli" else "samples.npz")
    images: np.ndarray = np.load(file)["images"]
    return images


def grain(images: np.ndarray) -> float:
    """The mean step between neighbouring pixels, (N, H, W, C) of 0 to 255: what noise has much of."""
    x = images.astype(float)
    return float((np.abs(np.diff(x, axis=1)).mean() + np.abs(np.diff(x, axis=2)).mean()) / 2)


def real_grain(data: list[str]) -> float:
    items = build_data(configuration("train", *data)).items
    return grain(np.moveaxis(items[:: max(1, len(items) // 1000)].numpy(), 1, -1))


def side_by_side(args: argparse.Namespace, shown: int = 40) -> Path:
    """The first images of each contestant, beside one another."""
    grids = []
    for name in args.contestants.split(","):
        images = images_of(name, 0, args)[:shown]
        grids.append(grid(torch.from_numpy(np.moveaxis(images, -1, 1)), columns=8))
    width, height = grids[0].size
    sheet = Image.new("RGB", (len(grids) * (width + _GAP) - _GAP, height), "white")
    for number, each in enumerate(grids):
        sheet.paste(each, (number * (width + _GAP), 0))
    return save_png(sheet, args.out / "side_by_side.png")


def contest(args: argparse.Namespace) -> None:
    data = [DATA[args.data_name], f"dataset.root={args.root}"]
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(args.seeds):
        for name in args.contestants.split(","):
            out = args.out / f"{name}-{seed}"
            file = out / "eval/evaluation.json"
            if file.exists() and (known := json.loads(file.read_text())["metrics"]):
                found.setdefault(name, []).append(known)
                continue
            ours = name == "ddpm_cli"
            source = train_ours(data, args, seed, out) if ours else train_peer(name, data, args, seed, out)
            found.setdefault(name, []).append(scored(source, data, args, out))
    print(f"| {args.minutes:g} minutes, {args.data_name} | Fréchet distance (real images) | read as their label "
          f"| step between pixels ({real_grain(data):.1f}) |")  # fmt: skip
    print("|---|---|---|---|")
    for name, scores in found.items():
        values = [score["fid"]["value"] for score in scores]
        label = [score["accuracy"]["value"] for score in scores if "accuracy" in score]
        read = f"{100 * median(label):.1f} %" if label else ""
        steps = median(grain(images_of(name, seed, args)) for seed in range(len(scores)))
        spread = f" [{min(values):.3g}, {max(values):.3g}]" if len(values) > 1 else ""
        print(f"| {name} | {median(values):.3g}{spread} ({scores[0]['fid']['floor']:.2g}) | {read} | {steps:.1f} |")
    print(side_by_side(args))
    timing.finish(timing.line("quality", data=args.data_name, minutes=args.minutes, rows=found), args.json)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_name", choices=DATA)
    parser.add_argument("--root", type=Path, required=True, help="where the data are")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for all that comes out")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seeds", type=int, default=1, help="how many runs of each")
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--evaluations", type=int, default=50, help="of a peer's network, for an image")
    parser.add_argument("--contestants", default=",".join(NAMES))
    parser.add_argument("--ours", default="", help="overrides for our run")
    parser.add_argument("--draw", default="", help="overrides for what we draw: 'sampler=dpmpp guidance.scale=2'")
    parser.add_argument("--labelled", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, help="a file to which the line of JSON is added")
    contest(parser.parse_args())


if __name__ == "__main__":
    main()
