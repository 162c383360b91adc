"""What samples are drawn from, of a model with a condition: files that an invocation names, or images of its data."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_cli.build.model import build_condition, build_medium, item_shape
from ddpm_cli.build.trainer import build_conditions, build_data
from ddpm_cli.data.conditions import Condition, Conditions, as_cond, read_vectors
from ddpm_cli.diffusion.denoiser import Cond
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.media.arrays import medium_of
from ddpm_cli.media.base import DecodeError, Medium, files_of
from ddpm_cli.seeding import generator

_ORDER = 204  # the stream of this module
_SHEET = 48  # samples that are shown beside what they were drawn from
_GROUPS = 4  # of them, in a row


@dataclass(frozen=True)
class Given:
    """Conditions in an order of their own, taken in turn: image k is drawn from number k % len."""

    condition: Condition
    medium: Medium  # of what is drawn
    told: str  # where they are from
    of_data: Conditions | None = None  # of a set, in the order of `rows`
    rows: Tensor | None = None
    items: Tensor | None = None  # (n, *given_shape) of files
    masks: Tensor | None = None  # (m, 1, H, W) bool

    def __len__(self) -> int:
        counts = [len(part) for part in (self.rows, self.items, self.masks) if part is not None]
        return max(counts)

    def given(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """What the images of these numbers are drawn from, and the holes in it."""
        if self.of_data is not None and self.rows is not None:
            return self.of_data.given(self.rows[[k % len(self) for k in indices]])
        assert self.items is not None

        def taken(rows: Tensor) -> Tensor:
            return rows[[k % len(self) % len(rows) for k in indices]]

        return taken(self.items), None if self.masks is None else taken(self.masks)

    def labels_of(self, indices: Sequence[int]) -> Tensor | None:
        """The classes of the images of the data that are drawn anew; None of files, which nobody has told of."""
        if self.of_data is None or self.rows is None or self.of_data.store.labels is None:
            return None
        return self.of_data.store.labels[self.rows[[k % len(self) for k in indices]]]

    def sheet(self, results: Tensor) -> tuple[Tensor, int]:
        """Pictures, uint8 (N, C, H, W), in rows of the given number of columns: of each of the first results, as files
        hold them, what it was drawn from, itself, and of the data the real one."""
        indices = range(min(len(results), _SHEET))
        pictures = [self.medium.pictures(results[: len(indices)])]
        if not self.condition.vector:
            given, holes = self.given(indices)
            if holes is not None:
                given = given.masked_fill(holes, 0.0)
            pictures.insert(0, _as_large(((given + 1) * 127.5).round().clamp(0, 255), pictures[0].shape[-2:]))
        if self.of_data is not None and self.rows is not None:
            store = self.of_data.store
            real = store.to_file(store.items[self.rows[[k % len(self) for k in indices]]])
            pictures.append(self.medium.pictures(real))
        channels = max(picture.shape[1] for picture in pictures)
        alike = [picture.expand(-1, channels, -1, -1) for picture in pictures]
        return torch.stack(alike, 1).flatten(0, 1), len(alike) * _GROUPS

    @property
    def fingerprint(self) -> str:
        """Equal for equal conditions."""
        if self.of_data is not None:
            stores = [self.of_data.store, self.of_data.beside]
            return " ".join(store.fingerprint for store in stores if store is not None)
        digest = hashlib.sha256()
        for part in (self.items, self.masks):
            digest.update(b"" if part is None else part.numpy().tobytes())
        return digest.hexdigest()


def cond_of(labels: Tensor | None, given: Given | None, places: Sequence[int], device: torch.device) -> Cond:
    """What the network is told of the samples at these places, on its device: classes (B,), and what they are drawn
    from. None where that is nothing."""
    cond = {} if labels is None else {"labels": labels.to(device)}
    if given is not None:
        cond |= {key: part.to(device) for key, part in as_cond(given.condition, *given.given(places)).items()}
    return cond or None


def _as_large(given: Tensor, size: Sequence[int]) -> Tensor:
    """given (N, K, h, w) in 0..255 as uint8 (N, 1 or 3, *size), each pixel a rectangle."""
    if given.shape[1] not in (1, 3):
        given = given.movedim(1, 2).flatten(2)[:, None]
    return F.interpolate(given, tuple(size)).to(torch.uint8)


def given_by_data(cfg: dict[str, Any], data: Conditions | None) -> Given | None:
    """Images of a set, in an order that is random and always the same; None where there is no condition."""
    if data is None:
        return None
    rows = torch.randperm(len(data.store), generator=generator("cpu", _ORDER))
    return Given(data.condition, build_medium(cfg), data.store.name, of_data=data, rows=rows)


def held_out(cfg: dict[str, Any]) -> Conditions | None:
    """The conditions of the test split of a configuration's data set, or, where there is none, of what is trained on;
    None without a condition."""
    if cfg.get("condition") is None:
        return None
    dataset = cfg["dataset"]
    try:
        if dataset.get("split") == "train":
            try:
                test = {**cfg, "dataset": {**dataset, "split": "test"}}
                return build_conditions(test, build_data(test))
            except (UserError, WorldError):
                pass
        return build_conditions(cfg, build_data(cfg))
    except (UserError, WorldError) as error:
        raise type(error)(f"{str(error).splitlines()[0]}; or name what to draw from: conditions=PATH") from error


def load_given(cfg: dict[str, Any], trained: dict[str, Any]) -> Given | None:
    """What an invocation draws from, of a model of the configuration `trained`; UserError where it is not what the
    model was trained for. None for one without a condition."""
    spec, condition = cfg.get("conditions"), build_condition(trained)
    if condition is None:
        if spec is not None:
            raise UserError(f"conditions={spec}: the model was trained without a condition; leave it out")
        return None
    holes = cfg.get("condition_masks")
    if holes is not None and not (condition.masked and spec is not None):
        raise UserError(
            f"condition_masks={holes} goes with conditions=PATH, of a model of condition=mask; leave it out"
        )
    if spec is None:
        root = {"root": cfg["data_root"]} if cfg.get("data_root") is not None else {}
        return given_by_data(trained, held_out({**trained, "dataset": {**trained["dataset"], **root}}))
    medium, shape = build_medium(trained), condition.given_shape(item_shape(trained))
    if condition.vector:
        return Given(condition, medium, spec, items=_vectors(spec, shape[0]))
    masks = None
    if condition.masked:
        if holes is None:
            raise UserError("condition_masks is required: a picture that is white where images are made anew")
        try:
            masks = medium.masks({"mask": holes})
        except ValueError as error:
            raise UserError(str(error).replace("edit.mask", "condition_masks")) from error
    node = trained["dataset"]
    files = medium_of(shape, node.get("dtype", "uint8"), node.get("range"))
    return Given(condition, medium, spec, items=files.to_model(_images(spec, files)), masks=masks)


def _vectors(spec: str, width: int) -> Tensor:
    """(n, width) of a file, or of all of a folder by name."""
    path = Path(spec)
    files = sorted(path.glob("[!.]*.npy")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"conditions={spec} holds no .npy files")
    found = [read_vectors(file, "conditions") for file in files]
    if wrong := [file for file, rows in zip(files, found, strict=True) if rows.shape[1] != width]:
        raise UserError(f"conditions: {wrong[0]} must have rows of {width} numbers, as the model was trained with")
    return torch.cat(found)


def _images(spec: str, medium: Medium) -> Tensor:
    """(n, *file_shape) of a file, or of all of a folder by name."""
    images = []
    for file in files_of(spec, "conditions", medium):
        try:
            images.append(medium.read(file))
        except DecodeError as error:
            raise UserError(f"conditions: {file}: {error}") from error
    return torch.stack(images)
