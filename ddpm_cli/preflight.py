"""Checks a command line before anything is written or torch imported, and completes it for Hydra."""

import os
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from ddpm_cli.claim import check_output
from ddpm_cli.config import Composer, as_typed, check_budget, key_of, parse_override, plain, refusal
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.overrides import check_form, check_group, check_key, is_choice, jobs
from ddpm_cli.primary import primary_groups, primary_keys
from ddpm_cli.remembered import remembered_config_dir, remembered_overrides, resume_count
from ddpm_cli.run_dir import find_checkpoint, resume_point, run_of
from ddpm_cli.validation import dotted_keys, shown, unknown_key, validated


@dataclass(frozen=True)
class Line:
    """A command line, read: the program, Hydra's flags and the overrides."""

    command: str  # train, sample
    flags: Namespace
    overrides: list[str]

    def value(self, key: str) -> Any:
        """The last value typed for a key; None if there is none or several."""
        typed = [parse_override(text) for text in self.overrides]
        values = [None if o.is_sweep_override() else o.value() for o in typed if o.key_or_group == key]
        return values[-1] if values else None


def prepared(line: Line, *, first: bool = True) -> list[str]:
    """The arguments to run Hydra with, once the configuration they name is known to be good.

    The first of several ranks looks at the files; when the others do, it may have made its folder already.
    """
    for text in line.overrides:
        check_form(text, line.command)
    showing = bool(line.flags.cfg)
    found = _point_to_resume(line) if line.command == "train" else None
    run = run_of(found) if found is not None else None
    extra_flags: list[str] = []
    overrides = line.overrides
    if run is not None:
        overrides = remembered_overrides(run, line.overrides) + line.overrides
        folder = None if line.flags.config_dir else remembered_config_dir(run)
        extra_flags = ["--config-dir", folder] if folder else []
    composer = _composer(line, extra_flags[1:])
    parsed = [parse_override(text) for text in overrides]
    for override in parsed:
        override.config_loader = composer.loader  # for glob(*)
        check_group(override, composer)
    sweep = _is_sweep(line, composer, parsed)
    for job in jobs(parsed) if sweep else [overrides]:
        cfg, config = _checked_job(job, composer, complete=not showing and (run is None))
        if run is None:
            check_budget(config, line.overrides)
    if first and not showing:
        _check_files(line, cfg, config, sweep, resuming=run is not None)
    if run is not None and not showing:
        overrides = [*overrides, f"hydra.output_subdir=.hydra/resume-{resume_count(run) + 1}"]
    if config.get("dry_run") is True and not sweep and not showing:
        overrides = [*overrides, "hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=console"]
    return [*overrides, *extra_flags]


def _composer(line: Line, more_dirs: Sequence[str]) -> Composer:
    flags = line.flags
    dirs = [flags.config_dir] if flags.config_dir else list(more_dirs)
    for name, folder in [("--config-dir", flags.config_dir), ("--config-path", flags.config_path)]:
        if folder and not os.path.isdir(folder):
            raise UserError(f"{name} {folder}: no such folder")
    fixed = [text for text in line.overrides if text.lstrip("+").startswith("hydra.searchpath=")]
    for override in map(parse_override, fixed):
        value = override.value()
        for folder in value if isinstance(value, list) else [value]:
            path = str(folder).removeprefix("file://")
            if "://" not in path and not os.path.isdir(path):
                raise UserError(f"hydra.searchpath: {path}: no such folder")
            dirs += [path] if "://" not in path else []
    return Composer.for_command_line(line.command, flags.config_name, flags.config_path, dirs, fixed)


def _point_to_resume(line: Line) -> Path | None:
    resume, run_dir = line.value("resume"), line.value("run_dir")
    if resume is None:
        return None
    if not isinstance(resume, str) or not resume:
        raise UserError(f"resume must be latest, auto, a run folder or a checkpoint file, got {shown(resume)}")
    init = line.value("init")
    if resume != "auto" and init is not None:
        raise UserError(
            f"init={init} is for the beginning of a run, and resume={resume} goes on with one, which has its weights; "
            "leave one of the two out"
        )
    if line.flags.multirun:
        if resume != "auto":
            raise UserError(f"resume={resume} goes on with one run; leave out -m (a sweep can only have resume=auto)")
        return None
    if resume == "auto" and run_dir is None:
        run_dir = line.value("hydra.run.dir")
        if run_dir is None:
            raise UserError("resume=auto goes on if run_dir holds a run, so it needs run_dir=PATH")
    return resume_point(resume, None if run_dir is None else str(run_dir))


def _is_sweep(line: Line, composer: Composer, parsed: Sequence[Any]) -> bool:
    """Whether Hydra will run a sweep: -m, or hydra.mode set anywhere."""
    if line.flags.multirun:
        return True
    several = [override for override in parsed if override.is_sweep_override()]
    if not several and not any(o.key_or_group in ("experiment", "hydra.mode") for o in parsed):
        return False  # nothing there that could ask for one
    single = [str(o.input_line) for o in parsed if not o.is_sweep_override() and is_choice(o, composer)]
    cfg = composer.compose(single, sweep=True)
    _check_hydras_keys(cfg)
    if str(cfg.hydra.mode).endswith("MULTIRUN"):
        return True
    for override in several:
        key, _, value = str(override.input_line).partition("=")
        raise UserError(f"{key}: several values ({value[:60]}) need -m, one job each; for a list write {key}=[...]")
    return False


def _checked_job(overrides: list[str], composer: Composer, *, complete: bool) -> tuple[DictConfig, dict[str, Any]]:
    parsed = [parse_override(text) for text in overrides]
    chosen = [text for text, override in zip(overrides, parsed, strict=True) if is_choice(override, composer)]
    cfg = composer.compose(chosen)
    for key in primary_keys(composer.command):
        if key not in cfg.keys():  # noqa: SIM118 - `in cfg` is False where a value is missing
            raise UserError(f"{key} is missing: --config-name or --config-path gives no configuration of this command")
    choices = cfg.hydra.runtime.choices
    reference = plain(cfg, lenient=True) if choices.get("experiment") is None else composer.reference(choices)
    known = list(dotted_keys(reference))
    for override in parsed:
        if not is_choice(override, composer):
            check_key(override, known, choices)
    cfg = cfg if chosen == overrides else composer.compose(overrides)
    return cfg, checked(cfg, composer, choices, complete=complete, reference=reference)


def checked(
    cfg: DictConfig,
    composer: Composer,
    choices: Any,
    *,
    complete: bool = True,
    reference: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The composed configuration as a plain dict, every value checked; a group chosen as null is there as None."""
    reference = reference if reference is not None else composer.reference(choices)
    config = plain(cfg)
    primary = primary_keys(composer.command)
    _check_hydras_keys(cfg)
    _check_keys_of_files(config, primary, {*primary_groups(composer.command), *composer.groups})
    accepted = validated(config, reference, f"ddpm-{composer.command}", complete=complete)
    absent = [group for group in primary_groups(composer.command) if group != "experiment"]
    return {**dict.fromkeys(absent), **accepted}


def _check_hydras_keys(cfg: DictConfig) -> None:
    """Refuse an interpolation in Hydra's own settings that does not resolve: Hydra would tell with a traceback."""
    typed = cfg.hydra.overrides.hydra if "hydra" in cfg else OmegaConf.create([])
    for text in as_typed(typed):
        key = key_of(text)
        try:
            OmegaConf.select(cfg, key)
        except InterpolationToMissingValueError:
            continue  # the number of a job is known when it starts
        except OmegaConfBaseException as error:
            raise UserError(f"{key}: {refusal(error)}") from error


def _check_keys_of_files(config: dict[str, Any], primary: dict[str, Any], groups: Iterable[str]) -> None:
    """Refuse keys that a file of the user's brings in outside its own group: Hydra would carry them along unused."""
    known = [*dotted_keys(primary), *groups]
    ours = {key: value for key, value in config.items() if key in primary or key not in groups}
    for key in dotted_keys(ours):
        if key not in known:
            raise UserError(f"{unknown_key(key, known)} (it comes from a configuration file)")


def _check_files(line: Line, cfg: DictConfig, config: dict[str, Any], sweep: bool, *, resuming: bool) -> None:
    """Everything on disk that can be known to be wrong before a folder is made."""
    for key in ("ckpt", "init"):
        if config.get(key) is not None:
            find_checkpoint(config[key], key=key)
    _check_images(config)
    if config.get("dry_run") is True:
        return
    key = "hydra.sweep.dir" if sweep else "hydra.run.dir"
    folder = Path(str(OmegaConf.select(cfg, key))).absolute()
    typed = next((k for k in ("run_dir", "out_dir", "resume", key) if line.value(k) is not None), None)
    _check_writable(folder, typed)
    if not sweep and not resuming:
        check_output(line.command, folder, typed or key)


def _check_images(config: dict[str, Any]) -> None:
    """The images to edit and the model to guide by."""
    guide = (config.get("guidance") or {}).get("guide_ckpt")
    if guide is not None:
        find_checkpoint(guide, key="guidance.guide_ckpt")
    for key in ("image", "mask", "to"):
        path = (config.get("edit") or {}).get(key)
        if path is not None and not os.path.exists(path):
            raise UserError(f"edit.{key}={path}: no such file or folder")


def _check_writable(folder: Path, typed: str | None) -> None:
    there = next(path for path in [folder, *folder.parents] if os.path.lexists(path))
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return
    reason = "is not writable" if there.is_dir() else "is not a folder"
    if typed:
        raise UserError(f"{typed}: cannot write to {folder}: {there} {reason}")
    raise WorldError(f"cannot write to {folder}: {there} {reason}; choose another with run_dir=PATH or out_dir=PATH")
