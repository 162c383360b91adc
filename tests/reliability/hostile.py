"""R13: files of somebody who wants his code to run. Whatever they hold, none does."""

import io
import os
import pickle
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm_cli.run_dir import checkpoint
from reliability import forks
from reliability.runs import STEPS, TINY, Outcome, copied, trained, unless


class Call:
    """Pickled, it is a call of a function."""

    def __init__(self, function: Any, *args: Any):
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def r13_hostile(place: Path, trials: int) -> Outcome:
    """Payloads in checkpoints, configurations, run folders, prepared sets and images, by resuming and by sampling."""
    outcome, marker = Outcome(), place / "marker"
    reference = trained(place, "reference")
    content = checkpoint.load(reference / f"checkpoints/step_{STEPS:08d}.pt")
    content.pop("format")
    for name, forge in list(_checkpoints(content, marker).items())[: trials or None]:
        run = copied(reference, "hostile")
        path = run / "checkpoints" / f"step_{STEPS + 1:08d}.pt"
        forge(path)
        for command, args in (
            ("train", [f"resume={path}", f"training.num_steps={STEPS + 3}"]),
            ("sample", [f"ckpt={path}", "num_images=1"]),
        ):
            ended = forks.run(command, *args, place=place, hook=_bounded)
            outcome.add(f"{command}: {name}", *_harmless(ended, marker, (2,)))
    for name, prepare in _folders(marker).items():
        run = copied(reference, "hostile_folder")
        prepare(run)
        ended = forks.run("train", f"resume={run}", f"training.num_steps={STEPS + 1}", place=place)
        outcome.add(f"run folder: {name}", *_harmless(ended, marker, (0, 2)))
    outcome.add("prepared set: pickled labels", *_prepared_set(place, marker))
    for name, data in (("pickle", pickle.dumps(Call(os.system, f"touch {marker}"))), ("bomb", _png_bomb())):
        folder = place / f"images_{name}" / "a"
        folder.mkdir(parents=True)
        (folder / "x.png").write_bytes(data)
        args = [arg for arg in TINY if not arg.startswith("dataset")]
        more = ["dataset=image_folder", f"dataset.root={folder.parent}", f"run_dir={place / name}"]
        ended = forks.run("train", *args, *more, place=place, hook=_bounded)
        outcome.add(f"image: {name}", *_harmless(ended, marker, (2,)))
    return outcome


def _harmless(ended: forks.Ended, marker: Path, codes: tuple[int, ...]) -> Iterator[str | None]:
    yield unless(not marker.exists(), "THE CODE RAN")
    if marker.exists():
        shutil.rmtree(marker) if marker.is_dir() else marker.unlink()
    yield unless(ended.code in codes, f"exit {ended.code}: {ended.err[-400:]}")
    yield unless(len(ended.told) <= 3 and "Traceback" not in ended.err, f"told: {ended.err[-400:]}")
    yield unless("weights_only=False" not in ended.err, "advises to load it unsafely")


def _bounded() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))


def _seal(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data + b"ddpm_cli crc32 %08x\n" % zlib.crc32(data))


def _checkpoints(content: dict[str, Any], marker: Path) -> dict[str, Callable[[Path], None]]:
    touch, code = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    inner = io.BytesIO()
    torch.save(Call(os.system, touch), inner)

    def pickled(payload: Any, *, legacy: bool = False) -> Callable[[Path], None]:
        def forge(path: Path) -> None:
            forged = {"format": checkpoint.FORMAT, **content, "extra": payload}
            torch.save(forged, path, _use_new_zipfile_serialization=not legacy)
            _seal(path)

        return forge

    def configured(**changes: Any) -> Callable[[Path], None]:
        config = content["config"]
        merged = {k: {**config[k], **v} if isinstance(v, dict) else v for k, v in changes.items()}
        return lambda path: checkpoint.save(path, {**content, "config": {**config, **merged}})

    def plain(path: Path) -> None:
        path.write_bytes(pickle.dumps(Call(os.system, touch)))
        _seal(path)

    def tar(path: Path) -> None:
        with tarfile.open(path, "w") as archive:
            for name in ("sys_info", "pickle", "storages", "tensors"):
                data = pickle.dumps(Call(os.system, touch))
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        _seal(path)

    system = {"_target_": "os.system", "command": touch}
    alias = {"_target_": "ddpm_cli.models.unet.torch.hub.load", "repo_or_dir": str(marker)}
    machinery = {
        "_target_": "ddpm_cli.data.prepare.download.open_set",
        "dataset": "x",
        "root": str(marker),
        "split": "train",
    }
    return {
        "os.system": pickled(Call(os.system, touch)),
        "eval": pickled(Call(eval, code)),
        "exec": pickled(Call(exec, code)),
        "a file within": pickled(Call(torch.storage._load_from_bytes, inner.getvalue())),
        "a process": pickled(Call(subprocess.Popen, ["touch", str(marker)])),
        "a folder": pickled(Call(os.mkdir, str(marker))),
        "legacy format": pickled(Call(os.system, touch), legacy=True),
        "plain pickle": plain,
        "tar": tar,
        "_target_: os.system": configured(model=system),
        "_target_ of the sampler": configured(sampler=system, variance=system),
        "an alias": configured(prediction={"_target_": "logging.os.system", "command": touch}),
        "torch.hub through a module": configured(model=alias),
        "our own machinery": configured(dataset=machinery, model={"_target_": "ddpm_cli.models.trunk.os"}),
        "its own trust": configured(trust=["os"], model=system),
        "an interpolation": configured(run_dir="${oc.env:HOME}"),
        "huge settings": configured(model={"channels": 10**12, "in_channels": 10**12}),
        "a zip bomb": lambda path: _bomb(path, content),
    }


def _bomb(path: Path, content: dict[str, Any]) -> None:
    """A sealed archive whose entries unpack to 64 GiB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/version", "3\n")
        with archive.open("a/data/0", "w", force_zip64=True) as entry:
            for _ in range(64):
                entry.write(bytes(2**20))
        entries = archive.filelist
        entries[-1].file_size = 2**36
    _seal(path)


def _png_bomb() -> bytes:
    """A PNG that says it is 60,000 x 60,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _folders(marker: Path) -> dict[str, Callable[[Path], None]]:
    touch = f"touch {marker}"

    def record(text: str, name: str = "overrides.yaml") -> Callable[[Path], None]:
        def prepare(run: Path) -> None:
            for path in [run / ".hydra" / name, *run.glob(f".hydra/resume-*/{name}")]:
                path.write_text(text, encoding="utf-8")

        return prepare

    return {
        "YAML with a call": record(f"!!python/object/apply:os.system ['{touch}']\n"),
        "remembered trust": record(f"['trust=[os]', 'model._target_=os.system', '+model.command=\"{touch}\"']\n"),
        "remembered folder": record(f"['hydra.run.dir={marker}', 'hydra.sweep.dir={marker}']\n"),
        "a configuration with a call": record(f"!!python/object/apply:os.system ['{touch}']\n", "hydra.yaml"),
    }


def _prepared_set(place: Path, marker: Path) -> Iterator[str | None]:
    from reliability.pictures import write_pictures

    pictures = place / "prepared_pictures"
    write_pictures(pictures, 12)
    args = [arg for arg in TINY if not arg.startswith("dataset")]
    more = ["dataset=image_folder", f"dataset.root={pictures}", "dataset.image_size=8", "dataset.channels=1"]
    first = forks.run("train", *args, *more, f"run_dir={place / 'p1'}", place=place)
    yield unless(first.code == 0, first.err[-300:])
    for path in pictures.glob(".prepared/*/labels.npy"):
        size = path.stat().st_size
        np.save(path, np.array([Call(os.system, f"touch {marker}")], dtype=object), allow_pickle=True)
        with open(path, "r+b") as file:
            file.truncate(max(size, path.stat().st_size))
        meta = path.parent / "meta.json"
        meta.write_text(meta.read_text().replace(f'"labels.npy": {size}', f'"labels.npy": {path.stat().st_size}'))
    second = forks.run("train", *args, *more, f"run_dir={place / 'p2'}", place=place)
    yield from _harmless(second, marker, (0, 2))
