"""R14 to R16: images that cannot be read, threads and processes that die, downloads that are broken."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from reliability import forks
from reliability.pictures import write_pictures
from reliability.runs import TINY, Outcome, unless

KEPT = [arg for arg in TINY if not arg.startswith("dataset")]
SHAPE = ["dataset=image_folder", "dataset.image_size=8", "dataset.channels=1"]


def r14_images(place: Path, trials: int) -> Outcome:
    """An image that cannot be read is named; with on_error=skip one in a hundred may be so, and is counted."""
    outcome = Outcome()
    for name, spoil in list(_bad_images().items())[: trials or None]:
        for threads in (1, 4):
            home = place / f"bad_{name}_{threads}"
            paths = write_pictures(home / "few", 30)
            spoil(paths[17])
            args = [*KEPT, *SHAPE, f"dataset.root={home / 'few'}"]
            stopped = forks.run("train", *args, f"run_dir={home / 'a'}", place=home, hook=_threads(threads))
            outcome.add(
                f"stop: {name}, {threads} threads",
                unless(stopped.code in (2, 3), f"exit {stopped.code}: {stopped.err[-300:]}"),
                unless(paths[17].name in stopped.err and "Traceback" not in stopped.err, stopped.err[-300:]),
                unless(not list((home / "few").glob(".prepared/*/meta.json")), "a set was prepared"),
            )
        many = write_pictures(place / f"many_{name}", 120)
        spoil(many[50])
        args = [
            *KEPT,
            *SHAPE,
            f"dataset.root={place / f'many_{name}'}",
            "dataset.on_error=skip",
            "training.num_steps=1",
        ]
        skipped = forks.run("train", *args, f"run_dir={place / f'skip_{name}'}", place=place)
        told = "skipped 1 of 120" in skipped.err and many[50].name in skipped.err
        outcome.add(f"skip: {name}", unless(skipped.code == 0 and told, f"exit {skipped.code}: {skipped.err[-300:]}"))
    for name, keep in _odd_images().items():
        paths = write_pictures(place / f"odd_{name}", 10)
        keep(paths[3])
        args = [*KEPT, *SHAPE, f"dataset.root={place / f'odd_{name}'}", "training.num_steps=1"]
        taken = forks.run("train", *args, f"run_dir={place / f'taken_{name}'}", place=place)
        outcome.add(f"taken: {name}", unless(taken.code == 0, f"exit {taken.code}: {taken.err[-300:]}"))
    return outcome


def _threads(count: int) -> forks.Hook:
    def hook() -> None:
        from ddpm_cli.data.prepare import pool

        pool._MIN_SECONDS = 0.0 if count > 1 else 1e9
        pool._num_cores = lambda: count
        if os.geteuid() == 0:  # who may read every file
            from ddpm_cli.media import image_files

            real = image_files.Image.open

            def opened(path, *args):
                if not os.stat(path).st_mode & 0o444:
                    raise PermissionError(13, "Permission denied", str(path))
                return real(path, *args)

            image_files.Image.open = opened

    return hook


def _bad_images() -> dict[str, Callable[[Path], object]]:
    def truncated(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:60])

    def floating(path: Path) -> None:
        Image.fromarray(np.ones((9, 9), np.float32)).save(path, format="TIFF")

    return {
        "truncated": truncated,
        "text": lambda path: path.write_text("not a picture"),
        "empty": lambda path: path.write_bytes(b""),
        "unreadable bytes": lambda path: path.write_bytes(os.urandom(300)),
        "floating point": floating,
    }


def _odd_images() -> dict[str, Callable[[Path], object]]:
    def saved(image: Image.Image, kind: str = "PNG") -> Callable[[Path], object]:
        return lambda path: image.save(path, format=kind)

    return {
        "cmyk": saved(Image.new("CMYK", (9, 9)), "JPEG"),
        "16 bits": saved(Image.fromarray(np.full((9, 9), 40000, np.uint16))),
        "one pixel": saved(Image.new("L", (1, 1))),
        "transparent": saved(Image.new("RGBA", (9, 9))),
    }


def r15_workers(place: Path, trials: int) -> Outcome:
    """No workers to lose: preparing uses threads, training none. What fails in a thread is told; nothing stays
    behind a process that is killed, and the next run repairs what it left."""
    outcome = Outcome()
    for trial in range(trials):
        home = place / f"prepared_{trial}"
        write_pictures(home / "pictures", 60)
        args = [*KEPT, *SHAPE, f"dataset.root={home / 'pictures'}", f"run_dir={home / 'run'}", "training.num_steps=1"]
        kind = ("killed", "exception", "memory")[trial % 3]
        child = forks.start("train", args, home, lambda home=home, kind=kind: _failing(home / "now", kind))
        if kind == "killed":
            deadline = time.monotonic() + 60
            while not (home / "now").exists() and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(0.02 * trial)
            child.kill(signal.SIGKILL)
        ended = child.wait()
        codes = {"killed": (-9,), "exception": (1,), "memory": (3,)}[kind]
        problems = [
            unless(ended.code in codes, f"exit {ended.code}: {ended.err[-300:]}"),
            unless(child.group_is_empty(), "a child is left"),
            unless(not list((home / "pictures").glob(".prepared/*/meta.json")), "a half prepared set"),
        ]
        again = forks.run("train", *args, "resume=auto", place=home)
        problems += [
            unless(again.code == 0, f"the next run: {again.err[-300:]}"),
            unless(not list((home / "pictures").glob(".prepared/.*tmp-*")), "temporary files stay"),
        ]
        outcome.add(f"{kind} {trial}", *problems)
    return outcome


def _failing(marker: Path, kind: str) -> None:
    from ddpm_cli.data import image_folder
    from ddpm_cli.data.prepare import pool

    pool._MIN_SECONDS, pool._num_cores = 0.0, lambda: 2
    real, count = image_folder.decode, 0

    def decode(*args):
        nonlocal count
        count += 1
        marker.touch()
        time.sleep(0.02)
        if count > 40 and kind != "killed":
            raise MemoryError if kind == "memory" else ZeroDivisionError("a bug of ours")
        return real(*args)

    image_folder.decode = decode


def r16_downloads(place: Path, trials: int) -> Outcome:
    """Offline, and with archives that are cut off or of another checksum: told where the files belong, never used."""
    outcome = Outcome()
    files = {
        "cifar10": ("cifar-10-python.tar.gz", "cifar-10-python.tar.gz"),
        "mnist": ("MNIST/raw/train-images-idx3-ubyte.gz", "train-images-idx3-ubyte.gz"),
        "svhn": ("train_32x32.mat", "train_32x32.mat"),
        "cifar100": ("cifar-100-python.tar.gz", "cifar-100-python.tar.gz"),
    }
    for name, (file, told) in list(files.items())[: trials or None]:
        for state, data in (("absent", None), ("cut off", b"\x1f\x8b\x08\x00" + bytes(50)), ("other", b"x" * 1000)):
            for download in ("true", "false"):
                home = place / f"{name}_{state}_{download}".replace(" ", "_")
                if data is not None:
                    (home / "data" / file).parent.mkdir(parents=True)
                    (home / "data" / file).write_bytes(data)
                kept = [arg for arg in KEPT if not arg.startswith("model")]
                args = [*kept, f"dataset={name}", f"dataset.root={home / 'data'}", f"dataset.download={download}"]
                ended = forks.run(
                    "train", *args, "model=unet_small", f"run_dir={home / 'run'}", place=home, hook=_offline
                )
                outcome.add(
                    f"{name}, {state}, download={download}",
                    unless(ended.code in (2, 3), f"exit {ended.code}: {ended.err[-300:]}"),
                    unless(1 <= len(ended.told) <= 3 and "Traceback" not in ended.err, ended.err[-300:]),
                    unless(told in ended.err and "data" in ended.err, f"the path is not told: {ended.err[-300:]}"),
                    unless(not list((home / "data").glob(".prepared/*/meta.json")), "a set was prepared"),
                )
    return outcome


def _offline() -> None:
    import socket

    def refuse(*args, **kwargs):
        raise OSError(101, "Network is unreachable")

    socket.getaddrinfo = socket.create_connection = refuse
