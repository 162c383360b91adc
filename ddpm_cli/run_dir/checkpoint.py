"""Checkpoint files: tensors and plain values in one file, written whole or not at all, read without running code."""

import hashlib
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Required, TypedDict, cast

import torch

from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.run_dir.find import checkpoints, find_checkpoint
from ddpm_cli.system.files import replacing, sync
from ddpm_cli.system.tree import leaves

log = logging.getLogger("ddpm_cli")

FORMAT = 1
# Behind the archive stands a checksum of every byte before it. The archive's own leave out its directory and padding,
# and torch.load looks at neither.
_SEAL = re.compile(rb"ddpm_cli crc32 ([0-9a-f]{8})\n")
_SEAL_BYTES = len(b"ddpm_cli crc32 00000000\n")
_BLOCK = 2**22

Weights = dict[str, torch.Tensor]  # by parameter or buffer name, as nn.Module.state_dict gives them


class DataContent(TypedDict):
    name: str
    fingerprint: str  # of items and labels: a resumed run warns if it is another
    class_names: list[str]  # by label; empty where there are none


class AutoencoderContent(TypedDict):
    model: dict[str, Any]  # the node of a configuration
    weights: Weights


class MeterContent(TypedDict):
    images: int  # since the last log step
    has_vb: bool
    sums: Weights  # loss, vb, norm: 0-dim; noise: (2,), the gradient's variance of an image and its squared norm


class Progress(TypedDict):
    meter: MeterContent
    last: dict[str, float]  # the metrics of the last log step
    measured: dict[str, float]  # the last figures of each measurement, on fixed images and of evaluations
    best: float | None  # the figure of best.pt
    best_of: str | None  # that figure's name; the loss, where it is not said
    skipped: list[int]  # steps, from 0, whose batch was left out by on_nonfinite=rollback
    pending: bool  # metrics, preview or checkpoint of this step were interrupted, and are due


class Content(TypedDict, total=False):
    """All that a checkpoint holds. This list and the author of an entry are all that changes when one is added; files
    without it stay readable, so whoever reads it says what its absence means. Tensors lie on the CPU.

    `Required` entries are what makes a file a checkpoint; a run resumes only from all of the state's.
    """

    # By `save`.
    format: Required[int]
    # By TrainState.state_dict: the state of the run.
    step: Required[int]  # optimiser steps made
    network: Required[Weights]
    emas: Required[dict[str, Weights]]  # averaged weights, by the average's name; `ema` is what is sampled from
    optimizer: dict[str, Any]  # as torch.optim.Optimizer.state_dict gives it
    scaler: dict[str, Any]  # of fp16's gradient scaler; {} where that is off
    learned: dict[str, Weights]  # of a `weighting` or `timesteps` that learns
    # By callbacks.run_content: alike in all checkpoints of a run.
    config: Required[dict[str, Any]]  # resolved, plain values alone, and whole: nothing of it is composed again
    precision: str  # fp32, tf32, bf16 or fp16: what `auto` chose; resumed with, unless another is typed
    compile: bool  # likewise
    threads: int  # of each rank; likewise
    micro_batch_size: int | None  # what `auto` found; None: it was typed
    version: str  # of this program
    torch: str  # its version
    data: DataContent
    autoencoder: AutoencoderContent  # of a model of latents alone
    # By training.loop: what makes the figures of a resumed run those of one that was never stopped.
    progress: Progress
    # By ddpm-analytic, into a file that is there, for `ema` or `raw`: log_snr (N,), falling, and noise_error (N,).
    analytic: dict[str, dict[str, torch.Tensor]]


_KEYS = [key for key in Content.__annotations__ if key in Content.__required_keys__]


class Damaged(UserError):
    """A file that is not what was written, or no checkpoint at all: another one may serve."""


class _Summed:
    """A file that sums what is meant to be written, so that the disk can be asked whether it was.

    torch writes its archive from front to back and asks no more of a file than this, so the sum is that of the file.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.crc = file, 0

    def write(self, data: Any) -> int:
        self.crc = zlib.crc32(data, self.crc)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` to `path` atomically: a temporary file beside it, flushed, verified, then renamed over it."""
    try:
        with replacing(path, durable=True) as temporary:
            with open(temporary, "wb") as file:
                summed = _Summed(file)
                torch.save({"format": FORMAT, **content}, summed)  # type: ignore[arg-type]  # needs no more of a file
                file.write(b"ddpm_cli crc32 %08x\n" % summed.crc)
            sync(temporary)  # before it is read back: from the disk, where it can be
            verify(temporary)
    except Exception as error:
        # torch reports a failed write as RuntimeError without an errno.
        if isinstance(error, OSError | RuntimeError | UserError) and not isinstance(error, torch.OutOfMemoryError):
            raise WorldError(f"could not write {path}: {_reason(path, content, error)}") from error
        raise


def sha256_of_weights(weights: Mapping[str, torch.Tensor], of: str = "") -> str:
    """Of names, shapes and values as float32, behind what they are `of`."""
    digest = hashlib.sha256(of.encode())
    for name in sorted(weights):
        digest.update(f"{name} {tuple(weights[name].shape)}".encode())
        digest.update(weights[name].detach().float().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load(path: Path) -> Content:
    """The verified content of a checkpoint file, on the CPU. UserError says what is wrong with the file.

    Verified first, so that nothing of a damaged file is unpacked: what a flipped bit makes of a size or of an opcode
    would be torch's to survive. The bytes come from the disk once all the same, as unpacking finds them in memory.
    """
    verify(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own message advises to load it unsafely, which would run code from the file.
        raise Damaged(f"{path} is not a checkpoint of ddpm-train ({type(error).__name__})") from error
    if not isinstance(content, dict) or not all(key in content for key in _KEYS) or type(content["config"]) is not dict:
        raise Damaged(f"{path} is not a checkpoint of ddpm-train: it lacks the entries {', '.join(_KEYS)}")
    if content["format"] != FORMAT:
        raise UserError(
            f"{path} has format {content['format']}, this version reads {FORMAT}; use the version that wrote it"
        )
    for _, value in leaves(content["config"]):  # resolved when it was written: one could only read this machine's state
        if isinstance(value, str) and "${" in value:
            raise UserError(
                f"{path}: its configuration holds an interpolation ({value}), which a checkpoint never does"
            )
    return cast(Content, content)


def verify(path: Path) -> None:
    """Damaged unless every byte of the file is as it was written (torch.load does not look at its checksums)."""
    try:
        with open(path, "rb") as file:
            size, crc = os.fstat(file.fileno()).st_size, 0
            left = size - _SEAL_BYTES
            while left > 0 and (block := file.read(min(_BLOCK, left))):  # the file may be larger than the memory left
                crc, left = zlib.crc32(block, crc), left - len(block)
            seal = _SEAL.fullmatch(file.read())
            entries = zipfile.ZipFile(file).infolist()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except PermissionError:
        raise UserError(f"{path} cannot be read: permission denied") from None
    except Exception as error:  # what a damaged archive raises has no common type
        raise Damaged(f"{path} is damaged or no checkpoint ({type(error).__name__}: {error})") from error
    if seal is None or int(seal[1], 16) != crc:
        raise Damaged(f"{path} is damaged or no checkpoint of ddpm-train: its checksum does not match")
    if sum(entry.file_size for entry in entries) > size:  # ours are stored as they are; others could fill the memory
        raise Damaged(f"{path} is no checkpoint of ddpm-train: its entries are compressed")


class OpenCheckpoint(NamedTuple):
    """A checkpoint as it was asked for: which file it turned out to be, and what the file holds."""

    path: Path
    content: Content
    damaged: list[Path]  # further ones of the same run that could not be read, the furthest first


def open_checkpoint(spec: str | Path, *, key: str = "ckpt") -> OpenCheckpoint:
    """What `latest`, a run folder or a file names, found and read. `key`: what the user typed it for.

    A run stands for its furthest checkpoint that can be read, as a crash or a bad disk spoils the newest file and the
    one before costs minutes; a warning names what was passed over. A file is taken at its word: if it is damaged no
    other would be what was asked for, and it is refused.
    """
    found = find_checkpoint(spec, key=key)
    if found == Path(spec).expanduser():
        return OpenCheckpoint(found, load(found), [])
    reasons: dict[Path, str] = {}
    for path in checkpoints(run := found.parent.parent):
        try:
            content = load(path)
        except Damaged as error:
            reasons[path] = str(error)
            continue
        if reasons:
            log.warning("%s; passed over for %s", "; ".join(reasons.values()), path)
        return OpenCheckpoint(path, content, list(reasons))
    told = "; ".join([*reasons.values()][:2]) or "there is none"  # none: removed since it was found
    another = f"name another run or checkpoint file with {key}=PATH"
    remedy = "start a new run in another run_dir" if key == "resume" else another
    raise UserError(f"no checkpoint in {run / 'checkpoints'} can be read: {told}\n{remedy}")


def _reason(path: Path, content: Mapping[str, Any], error: BaseException) -> str:
    """Why a file could not be written, with what is asked for most often: was the disk full?"""
    try:
        status = os.statvfs(path.parent)
        free = f"{status.f_bavail * status.f_frsize / 2**20:.0f} MiB free in {path.parent}"
    except OSError:
        free = f"{path.parent} is not there"
    needed = sum(value.nbytes for _, value in leaves(content) if isinstance(value, torch.Tensor))
    return f"{error} (it needs {needed / 2**20:.1f} MiB; {free})".replace("\n", " ")
