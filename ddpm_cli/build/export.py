"""A trained denoiser into the format of another program: what ddpm-export does.

What can be refused is refused before anything is written. What is written lies in a hidden folder until it has been
read again and found to be the same model; then it gets its name.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ddpm_cli.build.adapter import merged, open_adapter, write_adapter
from ddpm_cli.build.autoencoder import content_of, is_autoencoder, is_of_latents
from ddpm_cli.build.labels import class_numbers
from ddpm_cli.build.load import Trained, load_trained, load_weights
from ddpm_cli.build.model import build_condition, build_denoiser, input_shape, null_label
from ddpm_cli.config.context import Context
from ddpm_cli.config.overrides import as_command
from ddpm_cli.data.conditions import Condition
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.formats import autoencoder, diffusers, onnx_file, single_file, traced
from ddpm_cli.formats.card import card
from ddpm_cli.formats.traced import Call
from ddpm_cli.run_dir.find import ADAPTER_FILE, SINGLE_FILE
from ddpm_cli.system.files import write_text

log = logging.getLogger("ddpm_cli")


@dataclass(frozen=True)
class Source:
    """What is to be written."""

    trained: Trained
    label: int | None  # the one class that is to be drawn; None: all there are

    @property
    def network(self) -> Any:
        return self.trained.denoiser.network

    @property
    def labelled(self) -> bool:
        """Whether what is written is told of classes."""
        return self.label is None and null_label(self.network) is not None

    @cached_property
    def condition(self) -> Condition | None:
        return build_condition(self.trained.config)

    @property
    def told(self) -> dict[str, Any]:
        """config, step and data, as a checkpoint holds them."""
        trained = self.trained
        data = {"name": "", "fingerprint": "", "class_names": list(trained.class_names)}
        config = {key: value for key, value in single_file.public(trained.config).items() if key != "adapter"}  # merged
        return {"config": config, "step": trained.step, "data": data}

    def output(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        if self.label is not None:
            labels = torch.full((x.shape[0],), self.label)  # not len(x): that would fix the number of a graph's images
        cond = {} if labels is None else {"labels": labels}
        if self.condition is not None and self.condition.vector:
            cond["vector"] = torch.ones(x.shape[0], *self.condition.given_shape(()))
        return self.network(x, time, cond or None)


Written = Callable[[Path], float]  # writes into a folder, and returns how far the outputs are from the source's


def run_export(cfg: dict[str, Any], context: Context) -> None:
    """Writes the model in the format asked for; the folder is the last line on stdout."""
    trained = load_trained(cfg["ckpt"], cfg["weights"], cfg["trust"], lora=cfg["lora"])
    source = Source(trained, _label(cfg["label"], trained))
    write, limit = FORMATS[cfg["format"]]
    written = write(source)
    command = as_command(["ddpm-export", *context.overrides])
    text = card(cfg, context.run_dir.name, trained.path, trained.config, trained.step, command, source.labelled)
    with _whole(context.run_dir) as folder:
        distance = written(folder)
        if not distance <= limit:
            raise WorldError(
                f"format={cfg['format']}: what was written differs from {trained.path} by {distance:.2g}, more than "
                f"{limit:g}; it was removed again"
            )
        write_text(folder / "README.md", text)
    log.info("%s: outputs within %.1e of the checkpoint's", trained.told, distance)
    print(context.run_dir)


def _label(wanted: Any, trained: Trained) -> int | None:
    """The number of the class to be drawn alone; the null label's for `none`."""
    null = null_label(trained.denoiser.network)
    if wanted is None:
        return None
    if null is None:
        raise UserError(f"label={wanted}: {trained.path} has no classes; leave label out")
    if wanted != "none":
        return class_numbers(wanted, trained, key="label")
    if trained.config.get("training", {}).get("label_dropout") == 0:
        raise UserError("label=none: trained with training.label_dropout=0, the model never learned its null label")
    return null


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that takes its place when all is in it; out is not there, or empty."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if out.is_dir():  # a sweep's job has its record there
            for path in sorted(temporary.iterdir(), key=lambda path: path.is_file()):
                path.replace(out / path.name)
        else:
            temporary.rename(out)
    except OSError as error:
        raise WorldError(f"could not write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _remedy_told() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UserError(f"{error}; choose format=safetensors or format=onnx") from error


def _as_diffusers(source: Source) -> Written:
    trained, cfg = source.trained, source.trained.config
    network, schedule = source.network, trained.denoiser.schedule
    if is_autoencoder(cfg):
        return _autoencoder(source)
    with _remedy_told():
        if is_of_latents(cfg):
            raise UserError("diffusers' pipelines of DDPM draw images, and this is a model of latents")
        if cfg.get("representation") is not None:
            raise UserError("diffusers' pipelines of DDPM draw images, and this is a model of sounds")
        if source.condition is not None:
            raise ValueError("diffusers' pipelines of DDPM draw from noise alone, and this model has a condition")
        unet = {"sample_size": cfg["dataset"]["image_size"], **network.diffusers_config()}
        scheduler = diffusers.scheduler_config(cfg, schedule, cfg.get("clip", True))
    weights = network.state_dict()
    extra: dict[str, Any] = {"step": trained.step}
    if source.label is not None:
        unet["num_class_embeds"] = None
        weights = diffusers.folded(weights, network.embed_labels(torch.tensor([source.label])))
    elif source.labelled:
        dropout = cfg.get("training", {}).get("label_dropout", 0.0)
        names = list(trained.class_names)
        extra |= {"num_classes": network.num_classes, "class_names": names, "label_dropout": dropout}

    def write(folder: Path) -> float:
        diffusers.write(folder, unet, weights, scheduler, extra)
        again = load_trained(folder)
        levels = [again.denoiser.schedule.level(t) for t in _times(trained)]
        known = [schedule.level(t) for t in _times(trained)]
        apart = max(abs(float(a.sigma - b.sigma)) for a, b in zip(levels, known, strict=True))
        return max(apart, _distance(source, Source(again, None).output))

    return write


def _autoencoder(source: Source) -> Written:
    """As AutoencoderKL, which representation.autoencoder and diffusers open."""
    cfg, weights = source.trained.config, source.network.state_dict()

    def write(folder: Path) -> float:
        autoencoder.write(folder, cfg["model"], weights)
        again = autoencoder.read(folder)[1]
        return max(float((again[name] - tensor).abs().max()) for name, tensor in weights.items())

    return write


def _as_safetensors(source: Source) -> Written:
    if source.label is not None:
        raise UserError("label: format=safetensors keeps all classes; leave label out, and draw with labels=3")

    def write(folder: Path) -> float:
        told = source.told | content_of(source.trained.config)  # the autoencoder, so that one file is enough
        single_file.write(folder / SINGLE_FILE, source.network.state_dict(), told)
        return _distance(source, Source(load_trained(folder), None).output)

    return write


def _as_lora(source: Source) -> Written:
    trained = source.trained
    weights = trained.adapted
    if weights is None:
        raise UserError(f"format=lora: {trained.path} was trained without adapter=lora; choose format=safetensors")
    if source.label is not None:
        raise UserError("label: format=lora keeps all classes; leave label out, and draw with labels=3")

    def write(folder: Path) -> float:
        told = {**source.told, "config": single_file.public(trained.config)}
        content = open_adapter(folder, write_adapter(folder / ADAPTER_FILE, weights, told))
        again = build_denoiser({**content["config"], "trust": trained.config["trust"]}).eval()
        load_weights(again.network, merged(content["emas"]["ema"], content["config"], folder), folder)
        return _distance(source, Source(replace(trained, denoiser=again), None).output)

    return write


def _as_onnx(source: Source) -> Written:
    _refuse_vector(source)
    onnx_file.check_installed()

    def write(folder: Path) -> float:
        onnx_file.write(folder / "model.onnx", _traced(source), source.told)
        return _distance(source, onnx_file.opened(folder / "model.onnx"))

    return write


def _as_torch_export(source: Source) -> Written:
    _refuse_vector(source)

    def write(folder: Path) -> float:
        traced.write(folder / "model.pt2", _traced(source), source.told)
        return _distance(source, traced.opened(folder / "model.pt2"))

    return write


def _refuse_vector(source: Source) -> None:
    if source.condition is not None and source.condition.vector:
        raise UserError("a graph has no input for the vector of condition=vector; choose format=safetensors")


def _traced(source: Source) -> ExportedProgram:
    """Of a model with a condition, the channels of it stand behind those of the noisy image."""
    shape, times = input_shape(source.trained.config), _network_times(source.trained)
    return traced.traced(source.output, source.network, shape, times, source.labelled)


FORMATS: dict[str, tuple[Callable[[Source], Written], float]] = {  # and by how much the outputs may differ
    "diffusers": (_as_diffusers, 1e-5),
    "safetensors": (_as_safetensors, 0.0),
    "lora": (_as_lora, 0.0),
    "onnx": (_as_onnx, 1e-4),
    "torch_export": (_as_torch_export, 1e-5),
}


def _times(trained: Trained) -> list[float]:
    """Some that tell models apart: the ends and the middle."""
    total = trained.denoiser.schedule.num_timesteps
    return [1.0, float((total + 1) // 2), float(total)]


def _network_times(trained: Trained) -> Tensor:
    """What the network is told at these times."""
    return trained.denoiser.schedule.network_time(torch.tensor(_times(trained))).float()


@torch.no_grad()
def _distance(source: Source, other: Call) -> float:
    """The largest difference of the two networks' outputs, of several images at once and of one, beside what is larger:
    1 or the largest output."""
    time, numbers = _network_times(source.trained), torch.Generator().manual_seed(0)
    x = torch.randn(len(time), *input_shape(source.trained.config), generator=numbers)
    labels = torch.arange(len(time)) % (source.network.num_classes + 1) if source.labelled else None
    apart = 0.0
    for part in (slice(None), slice(1)):
        told = None if labels is None else labels[part]
        expected, output = source.output(x[part], time[part], told), other(x[part], time[part], told)
        apart = max(apart, float((output - expected).abs().max() / expected.abs().max().clamp(min=1)))
    return apart
