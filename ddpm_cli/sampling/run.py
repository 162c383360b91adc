"""Drawing images from a checkpoint: what ddpm-sample does once its command line is validated."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.build.machine import check_place, num_ranks
from ddpm_cli.config.context import Context
from ddpm_cli.errors import WorldError
from ddpm_cli.run_dir.hydra_record import write_record
from ddpm_cli.run_dir.log_file import logging_to
from ddpm_cli.sampling import pictures
from ddpm_cli.sampling.animation import Animation
from ddpm_cli.sampling.batch_size import chosen_batch_size
from ddpm_cli.sampling.checks import warn_of_unused_num_steps
from ddpm_cli.sampling.edit_inputs import how_many
from ddpm_cli.sampling.pipeline import SamplingPipeline, build_pipeline
from ddpm_cli.sampling.record import check_folder, record_of
from ddpm_cli.sampling.share import Share, Team, follow_launched
from ddpm_cli.system.files import remove_stale, replacing, write_text
from ddpm_cli.system.launch_env import Place, place_of
from ddpm_cli.system.signals import Signals
from ddpm_cli.system.threads import shared_by

log = logging.getLogger("ddpm_cli")
_GRID_MAX = 100
_WRITERS = 4  # threads that write PNGs, while the next batch is drawn


@dataclass(frozen=True)
class Drawing:
    """The images of a folder: which there are to be, in batches that are the same whoever draws them and however often
    the drawing was interrupted, so that an image's bytes are too."""

    pipeline: SamplingPipeline
    out: Path
    total: int
    batch_size: int
    animate: bool

    def file(self, k: int) -> Path:
        medium = self.pipeline.medium
        return self.out / medium.many / f"{k:06d}{medium.suffix}"

    def missing(self, numbers: Sequence[int]) -> list[int]:
        """Those without a file."""
        return [k for k in numbers if not self.file(k).exists()]

    def batches(self) -> list[range]:
        """Those of which an image is missing. An animation that is not there needs the walk of the first one."""
        found = [range(k, min(k + self.batch_size, self.total)) for k in range(0, self.total, self.batch_size)]
        animate = self.animate and not (self.out / "walk.gif").exists()
        return [batch for batch in found if self.missing(batch) or (animate and batch.start == 0)]


def run_sampling(cfg: dict[str, Any], context: Context) -> None:
    """Draws num_images images into the output folder, or those that an interrupted run left out; the last line on
    stdout is that folder."""
    place = place_of(os.environ)
    if place is not None and place.rank > 0:
        return follow_launched(draw_told, place)
    with logging_to(context.run_dir / "sample.log"), shared_by(cfg["threads"]):
        _run(cfg, context, place)


def _run(cfg: dict[str, Any], context: Context, place: Place | None) -> None:
    out = context.run_dir
    ranks = num_ranks(cfg, int(cfg["num_images"]))
    # Begun first, as the others import torch while this one loads the checkpoint.
    goes_on = f"the same command with out_dir={out} goes on"
    with _nothing_half_written(out, place), Team(place, draw_told, ranks, goes_on) as team:
        check_place(place, cfg, context.typed_keys)
        pipeline, total = _opened(cfg, context.typed_keys)
        warn_of_unused_num_steps(cfg, context.typed_keys)
        record = record_of(cfg, pipeline, total)
        check_folder(out, record, pipeline)
        batch_size = chosen_batch_size(cfg["batch_size"], pipeline, total, ranks)
        pipeline.settle_on(batch_size)
        # Up to here whatever is wrong is refused, and the folder is as it was. The record comes before the first image:
        # images without one are of unknown origin, and the run that is to complete them would be refused.
        items = out / pipeline.medium.many
        items.mkdir(parents=True, exist_ok=True)
        remove_stale(out, items, out / ".hydra")
        write_record(out, context.record, resumed=False)
        write_text(out / "sampling.json", json.dumps(record, indent=2) + "\n")
        drawing = Drawing(pipeline, out, total, batch_size, cfg["animate"])
        _write_together(drawing, _drawn(drawing, team, _told(cfg, drawing, record, context)))
    print(out)


def _opened(cfg: dict[str, Any], typed_keys: Sequence[str]) -> tuple[SamplingPipeline, int]:
    """What draws, and how many images there are to be."""
    pipeline = build_pipeline(cfg)
    inputs, total = how_many(pipeline.inputs, int(cfg["num_images"]), typed_keys)
    if inputs is None and pipeline.given is not None and cfg["conditions"] and "num_images" not in typed_keys:
        total = len(pipeline.given)  # one of each
    return replace(pipeline, inputs=inputs), total


def _told(cfg: dict[str, Any], drawing: Drawing, record: dict[str, Any], context: Context) -> dict[str, Any]:
    """What the other ranks are to do, with what rank 0 chose or found in place of `auto` and `latest`."""
    trained, guide = drawing.pipeline.trained, drawing.pipeline.guide
    chosen = {
        "ckpt": str(trained.path),
        "precision": record["precision"],
        "compile": drawing.pipeline.compile,
        "batch_size": drawing.batch_size,
    }
    if guide is not None:
        chosen["guidance"] = {**cfg["guidance"], "guide_ckpt": str(guide.path)}
    return {
        "config": {**cfg, **chosen},
        "typed_keys": context.typed_keys,
        "out": str(drawing.out),
        "device": drawing.pipeline.device.type,
        "batches": [(batch.start, batch.stop) for batch in drawing.batches()],
    }


def draw_told(told: dict[str, Any], share: Share) -> None:
    """The part of a rank beside the first."""
    cfg = {**told["config"], "device": told["device"]}
    pipeline, total = _opened(cfg, told["typed_keys"])
    pipeline.settle_on(cfg["batch_size"])
    drawing = Drawing(pipeline, Path(told["out"]), total, cfg["batch_size"], cfg["animate"])
    for _ in _draw(drawing, [range(*batch) for batch in told["batches"]], share):
        pass


def _drawn(drawing: Drawing, team: Team, told: dict[str, Any]) -> Tensor:
    """All images, as files hold them, once all ranks have drawn those that are missing. Read from their files are only
    those that this rank has not drawn."""
    trained, total = drawing.pipeline.trained, drawing.total
    batches = [range(*batch) for batch in told["batches"]]
    missing = len(drawing.missing(range(total)))
    among = f" on {team.count} ranks" if team.count > 1 else ""
    log.info(
        "drawing %d %s from %s, %d evaluations each%s",
        missing,
        drawing.pipeline.medium.many,
        trained.told,
        drawing.pipeline.evaluations,
        among,
    )
    if drawing.pipeline.given is not None:
        log.info("each from a condition of %s, of %d in turn", drawing.pipeline.given.told, len(drawing.pipeline.given))
    if missing < total:
        log.info("the others are in %s already", drawing.out)
    medium = drawing.pipeline.medium
    images = torch.empty(total, *medium.file_shape, dtype=medium.file_dtype)
    there = set[int]()
    with Signals("flag") as signals:
        for numbers, drawn in _draw(drawing, batches, team.begin(told, missing, medium.one, signals)):
            images[numbers] = drawn
            there.update(numbers)
        team.finish()
    for k in set(range(total)) - there:
        try:
            images[k] = medium.load(drawing.file(k))
        except FileNotFoundError as error:
            raise WorldError(f"{drawing.file(k)} is not there; is out_dir on a disk that all ranks share?") from error
    return images


@torch.inference_mode()
def _draw(drawing: Drawing, batches: Sequence[range], share: Share) -> Iterator[tuple[list[int], Tensor]]:
    """This rank's part of the batches: the numbers of images that had no file, and the images, as files hold them. Each
    is written as soon as its batch is done: a run that is ended loses one batch at most."""
    pipeline, writing = drawing.pipeline, list[Future[Path]]()
    with ThreadPoolExecutor(_WRITERS) as writers:
        for number in share.numbers(len(batches)):
            batch = batches[number]
            animate = drawing.animate and batch.start == 0
            animation = Animation(pipeline.trained.denoiser.schedule, pipeline.medium) if animate else None
            for step in pipeline.walk(batch):
                share.look()  # between steps, as a batch may take longer than a process told to end is given
                if animation is not None:
                    animation.add(step)
            images, missing = pipeline.medium.to_file(step.x).cpu(), drawing.missing(batch)
            for written in writing:  # no more than one batch waits to be written
                written.result()
            writing = [writers.submit(pipeline.medium.save, images[k - batch.start], drawing.file(k)) for k in missing]
            if animation is not None:
                animation.save(drawing.out)
            share.tell(len(missing))
            yield missing, images[[k - batch.start for k in missing]]
        for written in writing:
            written.result()


def _write_together(drawing: Drawing, images: Tensor) -> None:
    """What shows or holds all images at once."""
    pipeline, out = drawing.pipeline, drawing.out
    shown, medium, classes = images[:_GRID_MAX], pipeline.medium, pipeline.num_classes
    columns = pictures.columns_of(len(shown), classes) if classes and pipeline.labels == "each" else None
    pictures.save_png(pictures.grid(medium.pictures(shown), columns), out / "grid.png")
    if (track := medium.track(shown)) is not None:
        track.save(out / "grid.wav")
    beside = pipeline.inputs if pipeline.inputs is not None else pipeline.given
    if beside is not None:
        items, columns = beside.sheet(images)
        pictures.save_png(pictures.grid(items, columns=columns), out / "side_by_side.png")
    arrays = dict(medium.arrays(images))
    labels = pipeline.labels_of(range(drawing.total))
    if labels is not None:
        arrays["labels"] = labels.numpy()
    with replacing(out / "samples.npz") as temporary, open(temporary, "wb") as file:  # numpy adds .npz to other names
        np.savez(file, **arrays)  # type: ignore[arg-type]


@contextmanager
def _nothing_half_written(out: Path, place: Place | None) -> Iterator[None]:
    """Clears at the end what ranks that had to be killed left in this program's own folder."""
    try:
        yield
    finally:
        if place is None and (out / "sampling.json").exists():
            remove_stale(out / "images", out / "sounds")
