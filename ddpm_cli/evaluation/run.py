"""Measuring images: what ddpm-eval does once its command line is validated."""

import logging
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.build.machine import check_place, num_ranks
from ddpm_cli.config.context import Context
from ddpm_cli.data.store import Items
from ddpm_cli.evaluation import memorisation, record
from ddpm_cli.evaluation.cache import cache_dir_of
from ddpm_cli.evaluation.evaluator import Evaluator, build_evaluator
from ddpm_cli.evaluation.features.base import Extracted, Features, build_features
from ddpm_cli.evaluation.kept import PIXELS, Arrays
from ddpm_cli.evaluation.metrics import Score
from ddpm_cli.evaluation.passes import EVALUATIONS, Pass, carry_out, over_held_out, over_images
from ddpm_cli.evaluation.reference import Reference, floor, reference
from ddpm_cli.evaluation.subject import GRID, Subject, open_subject
from ddpm_cli.run_dir.hydra_record import write_record
from ddpm_cli.run_dir.log_file import logging_to
from ddpm_cli.run_dir.result import recorded
from ddpm_cli.sampling import pictures
from ddpm_cli.sampling.batch_size import chosen_batch_size
from ddpm_cli.sampling.checks import refusals_told, warn_of_unused_num_steps
from ddpm_cli.sampling.share import Share, Team, follow_launched
from ddpm_cli.system.files import remove_stale, replacing
from ddpm_cli.system.launch_env import place_of
from ddpm_cli.system.signals import Signals
from ddpm_cli.system.threads import shared_by

log = logging.getLogger("ddpm_cli")
_BATCH = 64  # of images that are read


def run_evaluation(cfg: dict[str, Any], context: Context) -> float | None:
    """Measures num_images images and writes evaluation.json into the output folder, the last line on stdout; the value
    of the first metric, which a sweep goes by."""
    out, place = context.run_dir, place_of(os.environ)
    if place is not None and place.rank > 0:
        follow_launched(evaluate_told, place)
        return None
    ranks = num_ranks(cfg, int(cfg["num_images"]))
    goes_on = f"the same command with out_dir={out} goes on"
    with (
        logging_to(out / "eval.log"),
        shared_by(cfg["threads"]),
        Team(place, evaluate_told, ranks, goes_on) as team,
    ):
        check_place(place, cfg, context.typed_keys)
        work = _open(cfg, context, ranks)
        work = replace(work, record=record.agreed(out, work.record))
        # Up to here whatever is wrong is refused, and the folder is as it was. The record comes before what is kept:
        # without one that is of unknown origin, and the evaluation that is to complete it would be refused.
        for folder in (folders := work.subject.folders(out)):
            folder.mkdir(parents=True, exist_ok=True)
        remove_stale(out, out / ".hydra", *folders)
        write_record(out, context.record, resumed=False)
        record.write(out, work.record)
        with recorded(out, context) as result:
            metrics = _measure(work, out, team, context, result)
        print(record.table(metrics))
        print(out)
        return float(next(iter(metrics.values()))["value"])


@dataclass(frozen=True)
class Work:
    """An evaluation that was found to be possible."""

    subject: Subject
    batch_size: int
    evaluator: Evaluator | None  # None where no metric looks at images
    unseen: Reference | None  # real images that were not trained on
    floors: dict[str, float]  # what real images get from the evaluator
    record: dict[str, Any]  # evaluation.json before anything is measured


def _open(cfg: dict[str, Any], context: Context, ranks: int) -> Work:
    """UserError for all that cannot be measured, before anything is drawn or written. What is found of real images goes
    into the data's cache."""
    subject = open_subject(cfg, context.typed_keys)
    batch_size = _BATCH if cfg["batch_size"] == "auto" else int(cfg["batch_size"])
    if subject.pipeline is not None:
        warn_of_unused_num_steps(cfg, context.typed_keys)
        batch_size = chosen_batch_size(cfg["batch_size"], subject.pipeline, subject.total, ranks)
        subject.pipeline.settle_on(batch_size)
    evaluator, unseen = None, None
    floors: dict[str, float] = {}
    if subject.looks_at_images:
        with refusals_told():  # what these features, or so few images, cannot tell
            evaluator = build_evaluator(subject.data, subject.metrics, subject.training, subject.device)
            if subject.unseen is not None:
                store, split = subject.unseen
                cache = cache_dir_of(subject.data["dataset"])
                unseen = reference(store, evaluator.features, cache, split=split)
            for name in subject.metrics:
                scores = floor(name, evaluator.reference, unseen, subject.total)
                floors |= {figure: score.value for figure, score in scores.items()}
    return Work(subject, batch_size, evaluator, unseen, floors, record.protocol(subject, evaluator))


def _measure(work: Work, out: Path, team: Team, context: Context, result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The metrics as evaluation.json has them once this has ended."""
    began, told, subject = time.monotonic(), work.record, work.subject
    _find_all(work, out, team, context)
    scores: dict[str, Score] = {}
    if work.evaluator is not None:
        arrays = subject.features_in(out).read(subject.total)
        evaluations = float(arrays[EVALUATIONS][0])
        told["network_evaluations"] = result["metrics"]["network_evaluations"] = evaluations
        _show(subject, torch.from_numpy(arrays[PIXELS]), out)
        with refusals_told():
            scores |= work.evaluator.scores(_extracted(arrays))
        if "memorisation" in subject.cfg["metrics"]:
            scores |= _memorisation(work, work.evaluator, arrays, out)
    if subject.likelihood is not None:
        arrays = subject.likelihood_in(out).read(subject.num_held_out)
        scores |= subject.likelihood.scores({name: torch.from_numpy(array) for name, array in arrays.items()})
    metrics = {name: record.entry(name, score, work.floors.get(name)) for name, score in scores.items()}
    told |= {"metrics": metrics, "seconds": round(time.monotonic() - began, 1)}
    record.write(out, told)
    result["metrics"] |= record.flat(metrics)
    return metrics


def _find_all(work: Work, out: Path, team: Team, context: Context) -> None:
    """What is not known yet of each image, on all ranks."""
    subject, cfg = work.subject, work.subject.cfg
    batches = subject.missing(out, work.batch_size)
    count = sum(len(indices) for _, indices in batches)
    sizes = {
        subject.medium.many: subject.total if subject.looks_at_images else 0,
        "held-out images": subject.num_held_out,
    }
    total, both = sum(sizes.values()), " and ".join(f"{size} {what}" for what, size in sizes.items() if size)
    log.info("measuring %s%s", both, f", {total - count} of which are known" if count < total else "")
    chosen: dict[str, Any] = {}
    if (pipeline := subject.pipeline) is not None:  # in place of `latest` and `auto`
        chosen |= {"ckpt": str(pipeline.trained.path), "precision": work.record["precision"]}
        chosen |= {"compile": pipeline.compile, "batch_size": work.batch_size}
        if pipeline.guide is not None:
            chosen["guidance"] = {**cfg["guidance"], "guide_ckpt": str(pipeline.guide.path)}
    told: dict[str, Any] = {"config": {**cfg, **chosen}, "typed_keys": context.typed_keys, "out": str(out)}
    told |= {"device": subject.device.type, "batches": batches}
    features = None if work.evaluator is None else work.evaluator.features
    with Signals("flag") as signals:
        share = team.begin(told, count, "image", signals)
        carry_out(_passes(subject, features, out), batches, share)
        team.finish()


def evaluate_told(told: dict[str, Any], share: Share) -> None:
    """The part of a rank beside the first."""
    subject = open_subject({**told["config"], "device": told["device"]}, told["typed_keys"])
    if subject.pipeline is not None:
        subject.pipeline.settle_on(told["config"]["batch_size"])
    features, data = None, subject.data
    if subject.looks_at_images:
        cache = cache_dir_of(data["dataset"])
        features = build_features(data["features"], subject.training, subject.device, data["trust"], cache)
    carry_out(_passes(subject, features, Path(told["out"])), told["batches"], share)


def _passes(subject: Subject, features: Features | None, out: Path) -> dict[str, Pass]:
    passes = {}
    if features is not None:
        passes["images"] = over_images(subject.features_in(out), subject.source, features)
    if subject.likelihood is not None:
        passes["held out"] = over_held_out(subject.likelihood_in(out), subject.likelihood)
    return passes


def _show(subject: Subject, images: Tensor, out: Path) -> None:
    """The first images as a grid, and all of them where asked for."""
    medium = subject.medium
    pictures.save_png(pictures.grid(medium.pictures(images[:GRID])), out / "grid.png")
    if (track := medium.track(images[:GRID])) is not None:
        track.save(out / "grid.wav")
    if subject.cfg["save_images"]:
        with replacing(out / "samples.npz") as temporary, open(temporary, "wb") as file:
            np.savez(file, **medium.arrays(images))  # type: ignore[arg-type]  # as ddpm-sample writes them


def _extracted(arrays: Arrays) -> Extracted:
    names = ("features", "probabilities", "labels")
    features, *others = (torch.from_numpy(arrays[name]) if name in arrays else None for name in names)
    assert features is not None
    return Extracted(features, *others)


def _memorisation(work: Work, evaluator: Evaluator, arrays: Arrays, out: Path) -> dict[str, Score]:
    """Copies of training images, by pixels and by features, and a sheet of what looks most like one."""
    subject, known, others = work.subject, evaluator.reference, work.unseen
    assert subject.unseen is not None and others is not None
    medium, training, rows = subject.medium, subject.training, others.rows[: subject.total]
    drawn, real = torch.from_numpy(arrays[PIXELS]), subject.unseen[0].items[rows]
    pixels = (drawn, training.items, real)
    if training.items.dtype != torch.uint8:  # which differ by the same factor from what the model sees
        pixels = (medium.to_model(drawn), training.to_model(training.items[:]), training.to_model(real))
    spaces: dict[str, tuple[Tensor, Items, Tensor]] = {
        "pixels": pixels,
        "features": (torch.from_numpy(arrays["features"]), known.features, others.features[: len(rows)]),
    }
    scores, found = {}, []
    for name, (images, items, real) in spaces.items():
        near, beside = (memorisation.nearest(some, items, subject.device) for some in (images, real))
        scores[f"memorisation_{name}"] = memorisation.memorised(near, beside)
        found.append(near if name == "pixels" else replace(near, index=known.rows.numpy()[near.index]))
    items, columns = memorisation.contact_sheet(
        lambda rows: medium.pictures(drawn[rows]),
        lambda rows: medium.pictures(training.to_file(training.items[rows])),
        found,
    )
    pictures.save_png(pictures.grid(items, columns), out / "memorisation.png")
    return scores
