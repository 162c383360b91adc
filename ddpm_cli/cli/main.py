"""What every command does around its work: check the command line, run it once or as a sweep, turn errors into a line
and an exit code."""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.callbacks import Callbacks  # Hydra's runner makes them so too
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from ddpm_cli import __version__
from ddpm_cli.cli.flags import Line, read
from ddpm_cli.cli.help import register_help
from ddpm_cli.cli.preflight import Accepted, accepted
from ddpm_cli.cli.reporting import (
    INTERRUPTED,
    TRACEBACK,
    JobFailed,
    report,
    text_of,
    without_hydras_word_on_failed_jobs,
)
from ddpm_cli.config.check import checked
from ddpm_cli.config.compose import Composer, refusal
from ddpm_cli.config.context import Context
from ddpm_cli.config.groups import config_dir, primary_keys
from ddpm_cli.config.overrides import as_typed, quoted
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.results.runs import sweep_of
from ddpm_cli.results.table import PICTURE, Table, write_summary
from ddpm_cli.run_dir.find import resume_point
from ddpm_cli.run_dir.result import job_recorded
from ddpm_cli.system.launch_env import command_began, place_of, rank_of
from ddpm_cli.system.signals import Signals

PIPE_CLOSED = 128 + 13

Body = Callable[[dict[str, Any], Context], Any]


@dataclass(frozen=True)
class Command:
    """A console script around its body, which gets the checked, plain configuration and its context.

    Launchers send it to their workers by value: what it holds is plain, or can be imported there.
    """

    name: str  # train: also that of its primary configuration
    body: Body
    jobs: dict[tuple[str, ...], dict[str, Any]] = field(default_factory=dict)  # of a sweep: checked before it starts
    collects: str | None = None  # the key of the list that paths typed alone are put into

    def __call__(self) -> None:
        """Run on sys.argv, and exit with the code that its end calls for."""
        began = command_began()
        environ, argv = dict(os.environ), list(sys.argv)
        # GNU OpenMP's threads otherwise spin for milliseconds while they wait: beside another busy process that makes
        # training 10 times slower. Some 20 microseconds bridge the gaps between operators; to sleep at once costs a
        # third.
        if "OMP_WAIT_POLICY" not in os.environ:
            os.environ.setdefault("GOMP_SPINCOUNT", "20000")
        # DistributedDataParallel warns, below Python, of the search for unused parameters that data_parallel asks for.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        os.environ.setdefault(TRACEBACK, os.environ.get("HYDRA_FULL_ERROR", "0"))
        # A log that cannot be written (a full disk) would print a traceback at every line.
        raising, logging.raiseExceptions = logging.raiseExceptions, False
        code = 0
        try:
            with Signals("raise"):
                self._run(began)
                sys.stdout.flush()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            code = INTERRUPTED
        except BrokenPipeError:  # `ddpm-train --help | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = PIPE_CLOSED
        except Exception as error:
            code = report(error, self.name, quiet=rank_of(os.environ) > 0)  # the first of several ranks tells
        finally:
            sys.argv[:] = argv
            logging.raiseExceptions = raising
            os.environ.clear()
            os.environ.update(environ)
        if code:
            raise SystemExit(code)

    def _run(self, began: float) -> None:
        if "--version" in sys.argv[1:]:
            print(f"ddpm-{self.name} {__version__}")
            return
        register_help()
        line = read(self.name, sys.argv[1:], self.collects)
        if line.shows_only:
            self._run_hydra(line, line.overrides)
            return
        place = place_of(os.environ)
        alone = "devices" not in primary_keys(self.name)
        if place is not None and (alone or line.flags.multirun):
            told = f"ranks started by {place.launcher}"
            if alone:
                raise UserError(f"ddpm-{self.name} uses one device, and not {told}; start it without {place.launcher}")
            raise UserError(f"-m does not go with {told}; leave it out, or use devices=N")
        with accepted(line, first=rank_of(os.environ) == 0) as found:
            if not found.sweep and not line.flags.cfg:
                self._run_once(line, found, began)
                return
        overrides = list(found.overrides)
        if found.config_dir:
            overrides += ["--config-dir", found.config_dir]
        if line.flags.cfg:
            self._run_hydra(line, overrides)
        else:
            self._sweep(line, found, overrides)

    def _run_once(self, line: Line, found: Accepted, began: float) -> None:
        """A single run: of the composition that was checked, and without a folder until it has been accepted whole.

        Hydra would make the folder and its record before the work begins; here the work makes them when nothing is
        left that could be refused (see RunDir and Context.record).
        """
        cfg, context = found.cfg.copy(), context_of(line, found, began)
        with read_write(cfg), open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(found.folder)
            cfg.hydra.run.dir, cfg.hydra.output_subdir = ".", None
            if rank_of(os.environ):  # one log is enough
                cfg.hydra.job_logging = {"version": 1, "root": None, "disable_existing_loggers": False}
        failure: list[Exception] = []

        def task(_: DictConfig) -> None:
            try:
                self.body(found.config, context)
            except Exception as error:  # Hydra would wrap it and speak of it
                failure.append(error)

        try:
            run_job(
                task, cfg, "hydra.run.dir", None, HydraContext(GlobalHydra.instance().config_loader(), Callbacks(cfg))
            )
        except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
            raise _settings_error(line, error) from error
        finally:
            sweep = sweep_of(found.folder)  # a job that was resumed by itself
            if sweep is not None and rank_of(os.environ) == 0:
                _summarize(sweep)
        report_on_run(found)
        if failure:
            raise failure[0]

    def _sweep(self, line: Line, found: Accepted, overrides: list[str]) -> None:
        """Hydra's sweeper and launcher start the jobs; stdout ends with their table and the folder that holds theirs,
        also where some failed or the sweep was interrupted."""
        table = None
        try:
            there = f"hydra.sweep.dir={quoted(str(found.folder))}"
            replace(self, jobs=found.jobs)._run_hydra(line, [*overrides, there])
        except JobFailed as error:
            table = _summarize(found.folder)
            raise JobFailed("\n".join(table.failures() if table else ()) or str(error)) from None
        finally:
            if table := table or _summarize(found.folder):
                print(table.markdown())
                if (picture := found.folder / PICTURE).exists():
                    print(f"plot: {picture}")
                print(found.folder, flush=True)
                report_on_run(found)

    def _run_hydra(self, line: Line, overrides: list[str]) -> None:
        """Hydra's own program on these overrides and the flags that were typed."""
        sys.argv[1:] = [*overrides, *line.others]
        # Hydra's own error printer ends in exit code 1; with this it lets exceptions through to us.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        try:
            with without_hydras_word_on_failed_jobs():
                hydra.main(version_base="1.3", config_path=config_dir(), config_name=self.name)(self.job)()
        except (HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError) as error:
            # Jobs catch their own errors, so this is Hydra's about its flags and settings.
            raise _settings_error(line, error) from error
        except RuntimeError as error:  # a launcher's: no cluster, or a worker that was killed
            raise WorldError(str(_settings_error(line, error))) from error
        except BrokenPipeError:
            raise
        except OSError as error:  # Hydra could not make the folder
            typed = any(text.startswith(("run_dir=", "out_dir=", "hydra.")) for text in line.overrides)
            raise (UserError if typed else WorldError)(f"cannot write to {error.filename}: {error.strerror}") from error

    def job(self, cfg: DictConfig) -> Any:
        """Hydra's task: one job of a sweep, perhaps in a process of its own."""
        settings = HydraConfig.get()
        overrides = as_typed(settings.overrides.task)
        folder = Path(settings.runtime.output_dir)
        context = Context(
            run_dir=folder, overrides=overrides, multirun=True, choices=_choices(OmegaConf.create({"hydra": settings}))
        )
        try:
            with job_recorded(folder, context):
                config = self.jobs.get(tuple(overrides)) or self._checked(cfg)
                if "run_dir" in config:  # as typed it is the folder of the whole sweep
                    config = {**config, "run_dir": str(folder)}
                return self.body(config, replace(context, checkpoint=resume_point(config.get("resume"), folder)))
        except Exception as error:
            report(error, self.name)
            # SystemExit would end the other jobs too.
            raise JobFailed(f"job {settings.job.num} failed: {text_of(error, self.name)}") from None
        finally:
            _summarize(Path(settings.sweep.dir))
            sys.stdout.flush()  # a worker's goes out before the sweep tells its own folder

    def _checked(self, cfg: DictConfig) -> dict[str, Any]:
        """A job whose values the sweeper chose, or one beyond those that are checked before a sweep starts."""
        settings = HydraConfig.get()
        composer = Composer(self.name, settings.job.config_name, [str(place) for place in settings.searchpath])
        with open_dict(cfg):
            cfg.hydra = settings
        return checked(cfg, composer)


def _summarize(sweep: Path) -> Table | None:
    """Writes a sweep's summary, of the jobs that there are so far; None if there are none."""
    try:
        return write_summary(sweep)
    except OSError as error:  # must not hide what the jobs came to
        logging.getLogger("ddpm_cli").warning("could not write the summary of %s: %s", sweep, error)
        return None


def context_of(line: Line, found: Accepted, began: float) -> Context:
    """Of a single run."""
    cfg = found.cfg.copy()
    with read_write(cfg), open_dict(cfg):
        cfg.hydra.run.dir = str(found.folder)
        cfg.hydra.runtime.output_dir = str(found.folder)
    return Context(
        run_dir=found.folder,
        overrides=[text for text in line.overrides if not text.startswith("hydra")],
        choices=_choices(cfg),
        began=began,
        checkpoint=found.checkpoint,
        record=_record(cfg),
    )


def report_on_run(found: Accepted) -> None:
    """Writes the page of what was run, where that was asked for."""
    if found.config.get("report") and rank_of(os.environ) == 0:
        from ddpm_cli.report_page.run import report_on  # Pillow: a fifth of a second

        report_on(found.folder)


def _choices(cfg: DictConfig) -> dict[str, str | None]:
    """Group by group the option that was chosen, without Hydra's own groups and what options share."""
    choices = {str(group): option for group, option in cfg.hydra.runtime.choices.items()}
    return {group: option for group, option in choices.items() if not group.startswith(("hydra/", "_"))}


def _record(cfg: DictConfig) -> dict[str, str]:
    """What Hydra writes into a run's .hydra, by name: the configuration, its own, and the overrides."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    parts = {"config": own, "hydra": OmegaConf.masked_copy(cfg, "hydra"), "overrides": cfg.hydra.overrides.task}
    return {f"{name}.yaml": OmegaConf.to_yaml(part) for name, part in parts.items()}


def _settings_error(line: Line, error: Exception) -> UserError:
    """What Hydra refuses, with its settings that were typed, of which it does not always name the one that is wrong."""
    if isinstance(error, UserError):
        return error
    own = [text for text in line.overrides if text.lstrip("+~").startswith("hydra")]
    return UserError("; ".join([refusal(error), *own]))
