"""What every command does around its work: check the command line, turn errors into a line and an exit code."""

import argparse
import functools
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ddpm_cli import __version__, leftovers
from ddpm_cli.argv import quiet_rank, rank_of, with_quoted_paths
from ddpm_cli.config import Composer, Context, as_typed, refusal
from ddpm_cli.durations import command_began
from ddpm_cli.ending import ending_on_signals
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.preflight import Line, checked, prepared
from ddpm_cli.reporting import (
    INTERRUPTED,
    TRACEBACK,
    USER,
    WORLD,
    JobFailed,
    report,
    text_of,
    without_hydras_word_on_failed_jobs,
    write_to_log,
)
from ddpm_cli.validation import near_option

# What was typed, for the jobs of this process: a resumed run also hears the overrides it remembers.
_typed: list[str] | None = None
_sweep: Path | None = None  # the folder of the sweep in progress
_before: leftovers.Before | None = None  # the folder of a single run
_began: float | None = None  # when this command did

Body = Callable[[dict[str, Any], Context], Any]


class Folders(Callback):
    """Notes a sweep's folder where its jobs are started from (they may run in processes of their own), and the folder
    of a single run as it is before Hydra writes into it."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        global _before
        folder, subdir = config.hydra.run.dir, config.hydra.output_subdir
        _before = None if subdir is None else leftovers.before(Path(os.path.abspath(folder)), str(subdir))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        global _sweep
        _sweep = Path(str(config.hydra.sweep.dir)).absolute()


def run(command: str, task: Callable[[], Any]) -> None:
    """A console script: run the Hydra application `task` on sys.argv and exit with the code its end calls for."""
    global _typed, _sweep, _before, _began
    _began = command_began()
    environ, argv = dict(os.environ), list(sys.argv)
    # GNU OpenMP's threads otherwise spin for milliseconds while they wait: beside another busy process that makes
    # training 10 times slower. Some 20 microseconds bridge the gaps between operators; to sleep at once costs a third.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault(TRACEBACK, os.environ.get("HYDRA_FULL_ERROR", "0"))
    # A log that cannot be written (a full disk) would print a traceback at every line.
    raising, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        with ending_on_signals():
            code = _run(command, task)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # `ddpm-train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + 13
    except Exception as error:
        code = report(error, command)
    finally:
        _typed, _sweep, _before, _began, sys.argv[:] = None, None, None, None, argv
        logging.raiseExceptions = raising
        os.environ.clear()
        os.environ.update(environ)
    if code:
        raise SystemExit(code)


def _run(command: str, task: Callable[[], Any]) -> int:
    global _typed
    flags, others = _read(with_quoted_paths(sys.argv[1:]))
    if flags.multirun:  # commas may separate the values of a sweep
        flags, others = _read(with_quoted_paths(sys.argv[1:], sweep=True))
    if flags.version:
        print(f"ddpm-{command} {__version__}")
        return 0
    if flags.experimental_rerun is not None:
        raise UserError("--experimental-rerun runs code out of a pickle file, so it is off; use resume=RUN_DIR")
    overrides = list(flags.overrides)
    if not (flags.help or flags.hydra_help or flags.shell_completion or flags.info):
        overrides = _prepared(Line(command, flags, overrides))
    _typed = list(flags.overrides)
    sys.argv[1:] = [*overrides, *others]
    # Hydra's own error printer ends in exit code 1; with this it lets exceptions through to us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with without_hydras_word_on_failed_jobs():
            task()
        _tell_sweep()
    except JobFailed:
        _tell_sweep()
        raise
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError) as error:
        if isinstance(error, UserError):
            raise
        # Jobs catch their own errors, so this is Hydra's about its flags and settings.
        own = [text for text in _typed if text.lstrip("+~").startswith("hydra")]
        raise UserError("; ".join([refusal(error), *own])) from error
    except BrokenPipeError:
        raise
    except OSError as error:  # Hydra could not make the folder or the log
        typed = any(text.startswith(("run_dir=", "out_dir=", "hydra.")) for text in _typed)
        raise (UserError if typed else WorldError)(f"cannot write to {error.filename}: {error.strerror}") from error
    sys.stdout.flush()
    return 0


def _tell_sweep() -> None:
    """The sweep's folder, behind those of its jobs."""
    if _sweep is not None and _sweep.is_dir() and rank_of(os.environ) == 0:
        print(_sweep, flush=True)


def _prepared(line: Line) -> list[str]:
    rank = rank_of(os.environ)
    try:
        overrides = prepared(line, first=rank == 0)
    except (UserError, WorldError) as error:
        if rank:  # the first rank tells
            raise SystemExit(USER if isinstance(error, UserError) else WORLD) from error
        raise
    return quiet_rank(overrides) if rank else overrides


def _read(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Hydra's flags, and the arguments that are no overrides (which may stand anywhere between them)."""
    parser = get_args_parser()
    for action in parser._actions:
        if "--version" in action.option_strings:
            parser._remove_action(action)
            for option in action.option_strings:
                del parser._option_string_actions[option]
    parser.add_argument("--version", action="store_true")
    known = [option for action in parser._actions for option in action.option_strings]
    parser.error = functools.partial(_refuse_flag, argv, known)  # type: ignore[method-assign]
    flags = parser.parse_intermixed_args(argv)
    overrides = list(flags.overrides)
    others = []
    for argument in argv:
        if argument in overrides:
            overrides.remove(argument)
        else:
            others.append(argument)
    return flags, others


def _refuse_flag(argv: list[str], known: list[str], message: str) -> NoReturn:
    hint = ""
    for argument in argv:
        name = argument.split("=")[0]
        if argument.startswith("--") and name not in known:
            setting = name.lstrip("-").replace("-", "_")
            hint = near_option(name, known) or f"; a setting is written without dashes: {setting}=VALUE"
            break
    raise UserError(f"{message}{hint}")


def job(body: Body) -> Callable[[DictConfig], Any]:
    """Hydra's task out of a function of the checked, plain configuration and its context."""

    @functools.wraps(body)
    def task(cfg: DictConfig) -> Any:
        command, multirun = body.__name__, HydraConfig.get().mode == RunMode.MULTIRUN
        try:
            context = _context(command, multirun)
            config = _checked(cfg, command, context)
            if multirun and "run_dir" in config:  # as typed it is the folder of the whole sweep
                config["run_dir"] = str(context.run_dir)
            return body(config, context)
        except Exception as error:
            code = report(error, command)
            if multirun or not isinstance(error, UserError):
                write_to_log(error)
            elif _before is not None:
                leftovers.clear(_before)
            if multirun:  # SystemExit would end the other jobs too
                raise JobFailed(f"job {HydraConfig.get().job.num} failed: {text_of(error, command)}") from None
            raise SystemExit(code) from error

    return task


def _context(command: str, multirun: bool) -> Context:
    hydra_cfg = HydraConfig.get()
    remembered = as_typed(hydra_cfg.overrides.task)
    return Context(
        command=f"ddpm-{command}",
        run_dir=Path(hydra_cfg.runtime.output_dir),
        overrides=remembered if multirun or _typed is None else [o for o in _typed if not o.startswith("hydra")],
        multirun=multirun,
        job_num=hydra_cfg.job.num if multirun else 0,
        began=time.monotonic() if multirun or _began is None else _began,
        choices={str(key): option for key, option in hydra_cfg.runtime.choices.items() if "hydra/" not in str(key)},
    )


def _checked(cfg: DictConfig, command: str, context: Context) -> dict[str, Any]:
    hydra_cfg = HydraConfig.get()
    fixed = [text for text in as_typed(hydra_cfg.overrides.hydra) if text.lstrip("+").startswith("hydra.searchpath=")]
    composer = Composer(command, GlobalHydra.instance().config_loader(), hydra_cfg.job.config_name, fixed)
    # A resumed run has its required values in the checkpoint.
    return checked(cfg, composer, context.choices, complete=cfg.get("resume") in (None, "auto"))
