"""Runs a command as its console script does, in this process, where torch is imported already."""

import contextlib
import importlib
import io
import logging
import os
import sys
from dataclasses import dataclass

from hydra.core.global_hydra import GlobalHydra


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
