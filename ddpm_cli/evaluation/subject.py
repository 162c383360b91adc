"""What is measured, and against what: the images and where they come from, the real images, the model's likelihood."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddpm_cli.build.autoencoder import is_of_latents
from ddpm_cli.build.load import load_trained
from ddpm_cli.build.model import build_medium
from ddpm_cli.build.trainer import build_conditions, build_data
from ddpm_cli.config.check import configuration
from ddpm_cli.config.groups import options_of
from ddpm_cli.config.overrides import quoted
from ddpm_cli.data.described import FOUND, described, kind_of
from ddpm_cli.data.store import Store
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.evaluation.kept import Kept
from ddpm_cli.evaluation.likelihood import Likelihood
from ddpm_cli.evaluation.metrics import FEWEST
from ddpm_cli.evaluation.reference import held_out
from ddpm_cli.evaluation.source import Drawn, Found, Source, find_images
from ddpm_cli.media.base import Medium
from ddpm_cli.media.images import Images
from ddpm_cli.sampling.pipeline import SamplingPipeline, build_pipeline
from ddpm_cli.system.device import choose_device

Config = dict[str, Any]
_MOST_HELD_OUT = 64  # images at once of the likelihood, whose gradients take memory too
_FILES = ("image_folder", "audio_folder", "arrays", "parquet")  # named by where they are
GRID = 64  # images that are kept and shown whatever is measured


@dataclass(frozen=True)
class Subject:
    """All that an invocation names, made alike on every rank."""

    cfg: Config
    pipeline: SamplingPipeline | None  # None: the images are files
    source: Source
    total: int
    data: Config  # cfg with `dataset`, the node of what is compared with
    training: Store
    unseen: tuple[Store, str] | None  # images of the data that are not trained on, and what split they are
    likelihood: Likelihood | None
    medium: Medium  # of the images and of what they are compared with
    device: torch.device

    @property
    def metrics(self) -> list[str]:
        """Those that are functions of features."""
        return [name for name in self.cfg["metrics"] if name not in ("nll", "memorisation")]

    @property
    def looks_at_images(self) -> bool:
        return self.cfg["metrics"] != ["nll"]

    def features_in(self, out: Path) -> Kept:
        every = self.cfg["save_images"] or "memorisation" in self.cfg["metrics"]
        return Kept(out / "features", self.total if every else min(GRID, self.total))

    def likelihood_in(self, out: Path) -> Kept:
        return Kept(out / "likelihood")

    def folders(self, out: Path) -> list[Path]:
        """Where what is found of each image is kept."""
        found = [self.features_in(out).folder] if self.looks_at_images else []
        return found + ([self.likelihood_in(out).folder] if self.likelihood is not None else [])

    @property
    def num_held_out(self) -> int:
        return 0 if self.likelihood is None else min(self.cfg["nll"]["num_images"], len(self.likelihood.store))

    def missing(self, out: Path, batch_size: int) -> list[tuple[str, list[int]]]:
        """The batches of both passes of which something is not known."""
        found = []
        if self.looks_at_images:
            found += [("images", some) for some in self.features_in(out).missing(self.total, batch_size)]
        batch_size = min(batch_size, _MOST_HELD_OUT)
        return found + [("held out", some) for some in self.likelihood_in(out).missing(self.num_held_out, batch_size)]


def open_subject(cfg: Config, typed_keys: Sequence[str]) -> Subject:
    """UserError for what cannot be measured."""
    pipeline = build_pipeline({**cfg, "edit": None}) if cfg["images"] is None else None
    device = pipeline.device if pipeline is not None else choose_device(cfg["device"])
    source, size = _source(cfg, pipeline)
    total = _how_many(cfg, typed_keys, source)
    trained_on = None if pipeline is None else pipeline.trained.config
    data = {**cfg, **compared_with(cfg["data"], cfg["data_root"], trained_on, size)}
    medium = build_medium(data)
    _check_medium(cfg, pipeline, medium)
    _check_labels(cfg, pipeline, source)
    if isinstance(source, Found):
        source = source.brought_to(medium.item_shape)
    with _by_its_key_here():
        training, unseen, likelihood = build_data(data), held_out(data), None
    for name in ("memorisation", "nll"):
        if name in cfg["metrics"] and unseen is None:
            told = f"metrics: {name} needs images that were not trained on, and {training.name} has no others"
            raise UserError(f"{told}; train with dataset.split=train, which leaves some out")
    if "nll" in cfg["metrics"] and training.items.dtype != torch.uint8:
        raise UserError(f"metrics: nll is of pixels of 8 bits, and {training.name} holds others; leave it out")
    if "nll" in cfg["metrics"] and unseen is not None and pipeline is not None:
        knobs = {key: value for key, value in cfg["nll"].items() if key != "num_images"}
        trained = pipeline.trained
        # Loaded once more: what draws may have had its weights rounded for the GPU, and this is to be float32.
        exact = load_trained(trained.path, cfg["weights"], cfg["trust"], lora=cfg["lora"]).denoiser.to(device)
        seen = {**trained.config, "dataset": {**data["dataset"], "split": unseen[1]}}
        knobs["conditions"] = build_conditions(seen, unseen[0])
        likelihood = Likelihood(exact, trained.variance, unseen[0], cfg["seed"], device, **knobs)
    return Subject(cfg, pipeline, source, total, data, training, unseen, likelihood, medium, device)


@contextmanager
def _by_its_key_here() -> Iterator[None]:
    """What is said of dataset.root is of ddpm-eval's data_root."""
    try:
        yield
    except (UserError, WorldError) as error:
        raise type(error)(str(error).replace("dataset.root", "data_root")) from error


def _check_medium(cfg: Config, pipeline: SamplingPipeline | None, medium: Medium) -> None:
    """UserError for metrics that are of images alone, and for sounds compared with images."""
    drawn = "image" if pipeline is None else pipeline.medium.one
    if drawn != medium.one:
        raise UserError(f"data={cfg['data']} are {medium.many}, and what is measured is {drawn}s; name other data")
    if drawn == "image" and (pipeline.medium.outside if pipeline else Images(medium.item_shape)) != medium:
        raise UserError(f"data={cfg['data']} hold another kind of number than the images; name other data")
    if "nll" in cfg["metrics"] and pipeline is not None and pipeline.medium.outside is not pipeline.medium:
        raise UserError("metrics: nll is of images, and the model is of their latents, which others cannot compare")
    alone = [name for name in cfg["metrics"] if name in ("nll", "memorisation")]
    if medium.one == "sound" and alone:
        raise UserError(f"metrics: {' and '.join(alone)} of sounds cannot be had, only of images; leave it out")


def _check_labels(cfg: Config, pipeline: SamplingPipeline | None, source: Source) -> None:
    """UserError for accuracy of what was drawn for no class."""
    if "accuracy" not in cfg["metrics"]:
        return
    if isinstance(source, Found):
        known = source.labels is not None
    else:
        known = pipeline is not None and pipeline.classes_of([0]) is not None and cfg["labels"] != "none"
    if not known:
        raise UserError("metrics: accuracy is of images drawn for a class, and these are drawn for none; leave it out")


def compared_with(name: str | None, root: str | None, trained: Config | None, size: tuple[int, ...]) -> Config:
    """`dataset` and `representation` of the data to compare with: those of a name or a folder, else what the checkpoint
    was trained on; of a model of latents the images.

    root: where they are now. size: (C, H, W) of the images that are measured, which a checkpoint's data are brought to,
    and a folder's; sounds are brought to the rate and length of the checkpoint's.
    """
    representation, shape = None, _shape_of(size)
    if trained is not None and trained.get("representation") is not None and not is_of_latents(trained):
        representation = trained["representation"]
        shape = {key: trained["dataset"][key] for key in ("channels", "sample_rate", "num_samples")}
    if name is None:
        assert trained is not None, "images= without data= is refused before"
        node = trained["dataset"]
    elif name in options_of("dataset") and name not in _FILES:
        named = configuration("train", f"dataset={name}")
        if (named["representation"] is None) != (representation is None):
            representation, shape = named["representation"], {}  # refused, once it is known what they are
        node = named["dataset"] if trained is None else {**named["dataset"], **shape}
    elif Path(name).exists():
        kind = "audio_folder" if representation is not None else kind_of(Path(name))
        node = configuration("train", f"dataset={kind}", f"dataset.root={quoted(name)}")["dataset"] | shape
        node |= _like(trained, node) | _unprepared(trained, node)
        node |= described(node, [key for key in FOUND if node.get(key, 0) is None and key != "num_classes"])
    else:
        known = ", ".join(option for option in options_of("dataset") if option not in _FILES)
        raise UserError(f"data={name}: neither a data set ({known}) nor a folder or file of images")
    if root is None and node.get("root", "") is None:  # of another program's model
        raise UserError("ckpt does not say what it was trained on; name the data: data=cifar10, data=FOLDER, ...")
    if root is not None and "root" not in node:
        raise UserError(f"data_root={root}: these data are in no folder; leave it out")
    return {"dataset": node if root is None else {**node, "root": root}, "representation": representation}


def _shape_of(size: tuple[int, ...]) -> Config:
    """The settings of a data set that say what its images are brought to."""
    if len(size) != 3:
        return {}
    shape: Config = {"channels": size[0], "image_size": size[1] if size[1] == size[2] else list(size[1:])}
    return shape


def _like(trained: Config | None, node: Config) -> Config:
    """The kind and range of a model's numbers, for data that are told them alike."""
    known, asked = ({key for key in ("dtype", "range") if key in n} for n in ((trained or {}).get("dataset", {}), node))
    return {key: trained["dataset"][key] for key in known} if trained is not None and known == asked else {}


def _source(cfg: Config, pipeline: SamplingPipeline | None) -> tuple[Source, tuple[int, ...]]:
    """Where the images come from, and their (C, H, W)."""
    if pipeline is not None:
        return Drawn(pipeline), pipeline.medium.outside.item_shape
    found = find_images(Path(cfg["images"]))
    return found, max(found.sizes)


def _how_many(cfg: Config, typed_keys: Sequence[str], source: Source) -> int:
    """num_images; of files all there are, unless it was typed."""
    if not isinstance(source, Found):
        return _enough(int(cfg["num_images"]), cfg)
    total = int(cfg["num_images"]) if "num_images" in typed_keys else len(source)
    if total > len(source):
        raise UserError(f"num_images={total}: images={cfg['images']} holds {len(source)}; leave num_images out")
    return _enough(total, cfg)


def _enough(total: int, cfg: Config) -> int:
    """`total`; UserError where a metric cannot be had of so few images, which its features would tell only later."""
    wanting = [name for name in cfg["metrics"] if total < FEWEST.get(name, 1)]
    if wanting:
        least = max(FEWEST[name] for name in wanting)
        raise UserError(f"{', '.join(wanting)} of {total} image(s): at least {least} are needed, and 5,000 are usual")
    return total


def _unprepared(trained: Config | None, node: Config) -> Config:
    """Of data that a model was trained on without a prepared copy none is made here either."""
    told = (trained or {}).get("dataset", {})
    same = told.get("prepare") is False and Path(told["root"]).resolve() == Path(node["root"]).resolve()
    return {"prepare": False} if same and "prepare" in node else {}
