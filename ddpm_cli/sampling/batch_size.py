"""How many images are drawn together where nobody said: as many as the device has use and memory for."""

import logging
from itertools import islice

import torch

from ddpm_cli.sampling.pipeline import SamplingPipeline
from ddpm_cli.system.memory import first_that_fits, halves

log = logging.getLogger("ddpm_cli")
_ON_CPU, _ON_GPU = 64, 1024  # at most: more at once are no faster, and are shown and stopped later
_STEPS = 3  # of the walk, in a trial: some samplers keep the estimates of two steps before
_SHARE = 0.9  # of a GPU's memory; what is left is for others' needs and for fragments


def chosen_batch_size(wanted: int | str, pipeline: SamplingPipeline, total: int, ranks: int) -> int:
    """The batch size that was typed, or of `auto` the largest with which every rank has its share of `total` images;
    on a GPU, that fits when tried."""
    if wanted != "auto":
        if (batches := -(-total // int(wanted))) < ranks:
            log.warning(
                "batch_size=%s makes %d batch(es) for %d ranks; a smaller one keeps all busy", wanted, batches, ranks
            )
        return int(wanted)
    share = -(-total // ranks)
    if pipeline.device.type != "cuda":
        return min(share, _ON_CPU)
    chosen = first_that_fits(halves(min(share, _ON_GPU)), lambda size: _fits(pipeline, size))
    log.info("batch_size=auto: %d images at once", chosen)
    return chosen


@torch.inference_mode()
def _fits(pipeline: SamplingPipeline, size: int) -> bool:
    device = pipeline.device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        for _ in islice(pipeline.walk(range(size)), _STEPS):
            pass
        torch.cuda.synchronize(device)
        free, _ = torch.cuda.mem_get_info(device)
        there = free + torch.cuda.memory_reserved(device)  # to this process: others may use the GPU too
        return torch.cuda.max_memory_reserved(device) <= _SHARE * there
    finally:
        torch.cuda.empty_cache()
