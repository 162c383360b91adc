"""Where a run keeps its files, and how a run or a checkpoint is found again (no torch is needed for that)."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ddpm_cli.errors import UserError

OUTPUTS = "outputs"
_STEP = re.compile(r"step_(\d+)\.pt$")
# What a folder of another program's holds (formats/find.py opens it), and the one file of `ddpm-export`.
SINGLE_FILE = "model.safetensors"
ADAPTER_FILE = "adapter.safetensors"  # of `ddpm-export format=lora`: of use beside another model
_OTHERS = (SINGLE_FILE, ADAPTER_FILE, "model_index.json", "config.json", "unet/config.json")
_NOT_RUNS = {"samples", "checkpoints", "tensorboard", ".hydra", ".submitit"}


def checkpoints(run_dir: Path | str) -> list[Path]:
    """The run's checkpoint files, the furthest step first; `best.pt` and others come last."""
    files = Path(run_dir).joinpath("checkpoints").glob("*.pt")
    return sorted((file for file in files if file.is_file()), key=_order, reverse=True)


def _order(file: Path) -> tuple[int, float]:
    # The step in the name outlives a copy of the folder; the time of modification does not.
    return (step_of(file), _mtime(file))


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name, -1 if it has none."""
    match = _STEP.search(checkpoint.name)
    return int(match[1]) if match else -1


def _mtime(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # removed by the run's own retention in this moment
        return 0.0


def runs(root: Path | str) -> Iterator[Path]:
    """Folders at or below `root` that hold checkpoints; folders of samples are passed over."""
    for folder, names, _ in os.walk(root):
        if "checkpoints" in names:
            yield Path(folder)
        names[:] = [name for name in names if name not in _NOT_RUNS]


def latest_run() -> Path | None:
    """The run below outputs/ whose newest checkpoint was written last."""
    written = [(max(map(_mtime, files)), run) for run in runs(OUTPUTS) if (files := checkpoints(run))]
    return max(written)[1] if written else None


def run_of(checkpoint: Path | str) -> Path | None:
    """The run folder a checkpoint file belongs to; None for a file that was copied elsewhere."""
    folder = Path(checkpoint).parent
    return folder.parent if folder.name == "checkpoints" else None


def is_of_other_program(path: Path) -> bool:
    """Whether a path names a model as other programs keep it: a file of weights alone, or a folder that is no run."""
    if path.is_dir():
        return not checkpoints(path) and any((path / name).is_file() for name in _OTHERS)
    if not path.is_file():
        return False
    known = path.suffix == ".safetensors" or path.name == "diffusion_pytorch_model.bin"
    return known or (has_flags(path) and not _is_sealed(path))


def has_flags(path: Path) -> bool:
    """Whether a JSON file of the same name lies beside a file: the flags of a program that keeps weights alone."""
    return path.suffix != ".json" and path.with_suffix(".json").is_file()


def _is_sealed(path: Path) -> bool:
    """Whether a file ends as a checkpoint of ours does (see checkpoint.py), whatever lies beside it."""
    with open(path, "rb") as file:
        file.seek(max(path.stat().st_size - 64, 0))
        return b"ddpm_cli crc32 " in file.read()


def find_checkpoint(spec: str | Path, *, key: str = "ckpt") -> Path:
    """The checkpoint file that `latest`, a run folder or a file names; `key` is what the user typed it for.

    Whether it can be read is not known yet: a command line is refused before torch is imported. open_checkpoint (in
    checkpoint.py) reads it, or where a run was named the one before it.
    """
    if str(spec) == "latest":
        run = latest_run()
        if run is None:
            place = f"{Path(OUTPUTS).absolute()}/"
            raise UserError(f"{key}=latest: no checkpoint below {place}; train first, or name a run folder or a file")
        return checkpoints(run)[0]
    path = Path(spec).expanduser()
    if is_of_other_program(path):
        raise UserError(
            f"{key}={spec} is a model without the state of a run: draw from it with ddpm-sample ckpt=PATH, or train "
            "from its weights with ddpm-train init=PATH"
        )
    if path.is_file():
        return path
    if not path.exists():
        here, below = "" if path.is_absolute() else f" in {Path.cwd()}", Path(OUTPUTS).absolute()
        raise UserError(f"{key}={spec}: no such file or run folder{here}; `{key}=latest` is the newest below {below}/")
    run = path.parent if path.name == "checkpoints" else path
    found = checkpoints(run)
    if not found:
        file = next(iter(sorted(path.glob("*.pt"))), None)
        hint = _inner_runs(path, key) if file is None else f"; name the file: {key}={file}"
        raise UserError(f"{key}={spec}: no checkpoint in {run / 'checkpoints'}{hint}")
    return found[0]


def _inner_runs(path: Path, key: str) -> str:
    inner = sorted(run for run in runs(path) if checkpoints(run))[:3]
    return "; it holds runs, name one: " + ", ".join(f"{key}={run}" for run in inner) if inner else ""


def resume_point(resume: str | None, run_dir: str | Path | None) -> Path | None:
    """The checkpoint to go on from, None to start afresh.

    `auto` goes on if `run_dir` holds a run and else starts; `latest` looks in `run_dir` if that is given.
    """
    if resume is None:
        return None
    folder = Path(run_dir).expanduser() if run_dir is not None else None
    if resume == "auto":
        return next(iter(checkpoints(folder)), None) if folder is not None else None
    if resume == "latest" and folder is not None:
        return find_checkpoint(folder, key="run_dir")
    found = find_checkpoint(resume, key="resume")
    home = run_of(found)
    if folder is not None and home is not None and folder.resolve() != home.resolve():
        raise UserError(f"run_dir={run_dir}: resume={resume} goes on in {home}; leave run_dir out, or use init={found}")
    return found
