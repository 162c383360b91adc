"""Runs a command as its console script does, in this process, where torch is imported already; and a tiny run."""

import contextlib
import importlib
import io
import logging
import os
import sys
from dataclasses import dataclass

import torch
from hydra.core.global_hydra import GlobalHydra

# A run of seconds.
TINY = (
    "dataset=shapes dataset.num_images=100 dataset.image_size=8 dataset.channels=1 model.channels=8 model.patch_size=1 "
    "model.channel_mult=[1,2] model.blocks_per_level=1 training.batch_size=8 training.log_every=5 "
    "training.sample_every=20 training.checkpoint_every=10 training.num_samples=8 sampler.num_steps=3 "
    "schedule.num_timesteps=50 optimizer.warmup_steps=5"
).split()


def tensors(node, path=""):
    """All tensors of a checkpoint by name."""
    if isinstance(node, torch.Tensor):
        return {path: node}
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    return {name: tensor for key, child in children for name, tensor in tensors(child, f"{path}/{key}").items()}


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


def run(command: str, *args: object, cwd, check: bool = True) -> Done:
    """ddpm-`command` with `args`, in folder `cwd`; what it leaves behind in this process is put back."""
    out, err, argv, folder = io.StringIO(), io.StringIO(), sys.argv, os.getcwd()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sys.argv = [f"ddpm-{command}", *map(str, args)]
    os.chdir(cwd)
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            importlib.import_module(f"ddpm_cli.{command}").main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        os.chdir(folder)
        sys.argv = argv
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:], root.level = handlers, level
        GlobalHydra.instance().clear()
    assert not check or code == 0, err.getvalue()
    return Done(code, out.getvalue(), err.getvalue())
