"""Measuring a checkpoint's denoiser, and keeping the result in the checkpoint: what ddpm-analytic does.

What is measured belongs to weights, so a checkpoint holds up to two: `analytic: {ema: ..., raw: ...}`. It is what
variance=analytic is made of when images are drawn with those weights, in however many steps: between the measured
noise levels it is interpolated.
"""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.build.load import Trained, load_trained
from ddpm_cli.build.machine import placed
from ddpm_cli.build.model import build_medium, input_shape, mirrors, null_label
from ddpm_cli.build.trainer import build_conditions, build_data
from ddpm_cli.config.context import Context
from ddpm_cli.data.loading.batches import Batches
from ddpm_cli.diffusion.analytic_variance import measure_noise_error, measured_times
from ddpm_cli.diffusion.denoiser import Cond, clipped
from ddpm_cli.run_dir import checkpoint
from ddpm_cli.run_dir.find import find_checkpoint
from ddpm_cli.sampling.checks import check_draws
from ddpm_cli.seeding import generator
from ddpm_cli.system.progress import progress_bar

log = logging.getLogger("ddpm_cli")
_NOISE = 301  # name of the stream of random numbers
_LINES = 10  # of progress, at most, where there is no terminal


@torch.inference_mode()
def run_analytic(cfg: dict[str, Any], context: Context) -> None:
    """Measures the denoiser on num_images training images and stores the result in the checkpoint file, whose path is
    the last line on stdout."""
    find_checkpoint(cfg["ckpt"])  # refused before it is measured: another program's file has no room for the result
    trained = load_trained(cfg["ckpt"], cfg["weights"], cfg["trust"])
    check_draws(trained)
    path, denoiser = trained.path, trained.denoiser
    device = placed(denoiser, cfg, input_shape(trained.config)).device
    times = measured_times(denoiser.schedule, cfg["num_levels"])
    log.info("measuring %s (step %d) at %d noise levels", path, trained.step, len(times))
    estimate = measure_noise_error(
        clipped(denoiser, build_medium(trained.config).limit),  # as ddpm-sample clips
        _told(_batches(cfg, trained, device), cfg["num_images"]),
        denoiser.schedule,
        times,
        lambda x_0, batch, t: torch.randn(
            x_0.shape, device=x_0.device, generator=generator(x_0.device, cfg["seed"], _NOISE, batch, t)
        ),
    )
    # Read again: the other weights may have been measured meanwhile, and the rest of it was not kept for so long.
    content = checkpoint.load(path)
    measured = {**content.get("analytic", {}), cfg["weights"]: estimate}
    checkpoint.save(path, {**content, "analytic": measured})
    log.info("draw with it: ddpm-sample ckpt=%s sampler=ancestral variance=analytic", path)
    print(path.absolute())


def _batches(cfg: dict[str, Any], trained: Trained, device: torch.device) -> Iterator[tuple[Tensor, Cond]]:
    """num_images images of the data the checkpoint was trained on, in a shuffled order, with their labels."""
    dataset = trained.config["dataset"]
    if cfg["data_root"] is not None:
        dataset = {**dataset, "root": cfg["data_root"]}
    store = build_data({**trained.config, "dataset": dataset, "device": cfg["device"]})
    if cfg["num_images"] > len(store):
        said = "num_images=%d is more than the %d images of the data set: they are used again, with new noise"
        log.info(said, cfg["num_images"], len(store))
    batches = Batches(store, cfg["batch_size"], cfg["seed"], mirrors(trained.config), device)
    conditions = build_conditions({**trained.config, "dataset": dataset}, store)
    beside = None
    if conditions is not None:
        beside = conditions.in_batches(cfg["batch_size"], cfg["seed"], mirrors(trained.config), device)
    conditional = null_label(trained.denoiser.network) is not None
    for step, start in enumerate(range(0, cfg["num_images"], cfg["batch_size"])):
        rows = slice(0, min(cfg["batch_size"], cfg["num_images"] - start))
        x_0, labels = batches.batch(step, rows.start, rows.stop)
        cond = {"labels": labels} if conditional and labels is not None else {}
        if beside is not None:
            cond |= beside.cond(x_0, beside.beside(step, rows.start, rows.stop), step, rows)
        yield x_0, cond or None


def _told(batches: Iterator[tuple[Tensor, Cond]], total: int) -> Iterator[tuple[Tensor, Cond]]:
    """The batches, with a bar on a terminal and else with lines of how many of `total` images are done."""
    bar, done = progress_bar(total=total, unit="image", dynamic_ncols=True), 0
    for batch in batches:
        yield batch
        before, done = done, done + len(batch[0])
        bar.update(len(batch[0]))
        if bar.disable and done * _LINES // total > before * _LINES // total:
            log.info("measured %d of %d images", done, total)
    bar.close()
