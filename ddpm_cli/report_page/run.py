"""The work of ddpm-report: folders of runs in, a page and a table out."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpm_cli.config.context import Context
from ddpm_cli.config.groups import primary_keys
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.report_page.page import GENERATOR, page
from ddpm_cli.results.runs import Run, is_sweep, read
from ddpm_cli.results.table import Table, compared, write_summary
from ddpm_cli.system.files import write_text

log = logging.getLogger("ddpm_cli")

NAME = "report.html"


def run_report(cfg: dict[str, Any], context: Context) -> None:
    """Writes the page and prints the table; the last line on stdout is the page's path."""
    paths = [Path(path) for path in cfg["paths"]]
    if not paths:
        raise UserError("name what to report on, run folders, sweeps or evaluations: ddpm-report PATH...")
    runs = _runs(paths)
    out = Path(cfg["out"]) if cfg["out"] else (paths[0] if len(paths) == 1 else context.run_dir)
    out = out / NAME if out.is_dir() or not cfg["out"] else out
    _check_own(out)
    for sweep in filter(is_sweep, paths):
        _summarize(sweep)
    table = compared(runs)
    _write(table, out, cfg["title"] or _title(paths), cfg)
    print(table.markdown())
    print(out.absolute())


def report_on(folder: Path) -> None:
    """The page of a run or sweep that asked for it (report=true). Nothing that keeps it from being written ends the run
    as well, which has come to its own end."""
    out, settings = folder / NAME, primary_keys("report")
    try:
        if runs := read([folder]):
            _check_own(out)
            _write(compared(runs), out, _title([folder]), settings)
            log.info("report: %s", out)
    except Exception as error:
        log.warning("could not write the report of %s: %s", folder, error)


def _runs(paths: Sequence[Path]) -> list[Run]:
    """The runs at and below the paths; UserError for a path that is not there, and where there is no run at all."""
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: {'a file; name the folder of a run' if path.exists() else 'no such folder'}")
    found = {path: read([path]) for path in paths}
    for path in (path for path, runs in found.items() if not runs):
        if not any(found.values()):
            raise UserError(f"{path} holds no run: no result.json, metrics.jsonl or evaluation.json in it or below")
        log.warning("%s holds no run, and is left out", path)
    return read(paths)


def _check_own(out: Path) -> None:
    """A page may take the place of an earlier one, and of nothing else."""
    if out.exists() and not (out.is_file() and f'content="{GENERATOR} '.encode() in out.read_bytes()[:2000]):
        raise UserError(f"out={out} is there, and no report; choose another file")


def _summarize(sweep: Path) -> None:
    try:
        write_summary(sweep)
    except OSError as error:  # somebody else's, perhaps; the page may be written elsewhere
        log.warning("could not write the summary of %s: %s", sweep, error.strerror)


def _write(table: Table, out: Path, title: str, settings: Mapping[str, Any]) -> None:
    text = page(table, title, num_runs=settings["num_runs"], num_previews=settings["num_previews"])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    except OSError as error:
        raise WorldError(f"could not write {out}: {error.strerror}; choose another place with out=FILE") from error


def _title(paths: Sequence[Path]) -> str:
    """The path, from here on where it lies below."""
    if len(paths) > 1:
        return f"{len(paths)} folders, {time.strftime('%Y-%m-%d')}"
    path, here = paths[0].resolve(), Path.cwd().resolve()
    return str(path.relative_to(here) if here in path.parents else path)
