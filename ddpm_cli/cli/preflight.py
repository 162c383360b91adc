"""Checks a command line before anything is written or torch imported; what it accepts is what will be run."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ddpm_cli.cli.flags import Line
from ddpm_cli.cli.output_checks import check_output, check_writable
from ddpm_cli.cli.override_checks import check_form, check_group, check_key, is_choice, jobs
from ddpm_cli.config.check import check_budget, check_hydras_keys, checked
from ddpm_cli.config.compose import Composer, plain
from ddpm_cli.config.extras import check_trackers
from ddpm_cli.config.groups import primary_keys
from ddpm_cli.config.messages import shown
from ddpm_cli.config.overrides import parse_override
from ddpm_cli.errors import UserError
from ddpm_cli.formats.find import find_adapter, find_model
from ddpm_cli.run_dir.find import find_checkpoint, resume_point, run_of
from ddpm_cli.run_dir.hydra_record import remembered_config_dir, remembered_overrides
from ddpm_cli.system import tree

_INPUTS = (
    *("images", "edit.image", "edit.sound", "edit.mask", "edit.to"),
    *("conditions", "condition_masks", "condition.root", "condition.path", "representation.autoencoder"),
)


@dataclass(frozen=True)
class Accepted:
    """A command line that may be run."""

    overrides: list[str]  # those that a resumed run remembers, then those that were typed
    config_dir: str | None  # the one a resumed run remembers
    sweep: bool
    cfg: DictConfig  # as composed, of a single run or of the last job of a sweep that was looked at
    config: dict[str, Any]  # the same, plain and checked
    folder: Path  # where the results go: the run's, or the sweep's
    checkpoint: Path | None  # to go on from
    jobs: dict[tuple[str, ...], dict[str, Any]] = field(default_factory=dict)  # checked configurations, by overrides


@contextmanager
def accepted(line: Line, *, first: bool = True) -> Iterator[Accepted]:
    """What the command line amounts to, once all that can be known of it is known to be good; UserError else.

    Inside, Hydra is initialised as it composed. The first of several ranks looks at the files: when the others do, it
    may have made its folder already.
    """
    for text in line.overrides:
        check_form(text, line.command)
    # What a run remembers is composed with what is typed, so it is found before anything is composed.
    checkpoint = _checkpoint_to_resume(line) if line.command == "train" else None
    run = run_of(checkpoint) if checkpoint is not None else None
    remembered = remembered_overrides(run, line.overrides) if run is not None else []
    config_dir = remembered_config_dir(run) if run is not None and not line.flags.config_dir else None
    with Composer.opened(line.command, line.flags.config_name, *_places(line, config_dir)) as composer:
        yield _accepted(line, composer, [*remembered, *line.overrides], config_dir, checkpoint, first)


def settings_of(command: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What overrides amount to, plain and checked as those of a command line are, but for the files they name."""
    for text in overrides:
        check_form(text, command)
    with Composer.opened(command) as composer:
        for text in overrides:
            check_group(parse_override(text), composer)
        return _checked_job(list(overrides), composer, complete=True)[1]


def _accepted(
    line: Line,
    composer: Composer,
    overrides: list[str],
    config_dir: str | None,
    checkpoint: Path | None,
    first: bool,
) -> Accepted:
    showing = bool(line.flags.cfg)
    parsed = [parse_override(text) for text in overrides]
    for override in parsed:
        override.config_loader = composer  # type: ignore[assignment]  # glob(*) asks it for the options
        check_group(override, composer)
    if line.command == "train" and checkpoint is None and (chosen := _recipe_of_budget(parsed, composer)):
        overrides, parsed = [chosen, *overrides], [parse_override(chosen), *parsed]
    sweep = _is_sweep(line, composer, parsed)
    run = run_of(checkpoint) if checkpoint is not None else None
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for job in jobs(parsed) if sweep else [overrides]:
        cfg, config = _checked_job(job, composer, complete=not showing and run is None)
        if run is None:  # a stored budget has been spent; a new one is refused when the run is opened
            check_budget(config, line.overrides)
        if not showing:
            check_trackers(config)
        found[tuple(text for text in job if not text.startswith("hydra"))] = config  # as Hydra tells a job of them
    key = "hydra.sweep.dir" if sweep else "hydra.run.dir"
    typed = tree.get(config, "run_dir") or tree.get(config, "out_dir")
    folder = (run or Path(typed or str(OmegaConf.select(cfg, key)))).absolute()
    names = {job.get("name") for job in found.values()}  # a sweep over names has none itself
    if run is None and not typed and line.value(key) is None and len(names) == 1 and names != {None}:
        folder = folder.with_name(f"{folder.name}-{names.pop()}")
    if first and not showing:
        _check_files(line, config, folder, key, sweep=sweep, resuming=run is not None)
    return Accepted(overrides, config_dir, sweep, cfg, config, folder, checkpoint, found)


def _recipe_of_budget(parsed: Sequence[Any], composer: Composer) -> str | None:
    """experiment=auto, where a budget is typed and no experiment; of images, as sounds have a recipe of their own."""
    typed = {o.key_or_group: o.is_sweep_override() or o.value() for o in parsed}
    if not typed.get("budget") or "experiment" in typed:
        return None
    single = [str(o.input_line) for o in parsed if not o.is_sweep_override() and is_choice(o, composer)]
    return None if "sample_rate" in (composer.compose(single).get("dataset") or ()) else "experiment=auto"


def _places(line: Line, remembered: str | None) -> tuple[str | None, list[str]]:
    """--config-path, and where else groups are looked for: --config-dir, or what the run remembers of it, then
    hydra.searchpath."""
    flags = line.flags
    for name, folder in [("--config-dir", flags.config_dir), ("--config-path", flags.config_path)]:
        if folder and not os.path.isdir(folder):
            raise UserError(f"{name} {folder}: no such folder")
    own = flags.config_dir or remembered
    places = [f"file://{os.path.abspath(own)}"] if own else []
    typed = line.value("hydra.searchpath") or []
    for place in map(str, typed if isinstance(typed, list) else [typed]):
        path = place.removeprefix("file://")
        if "://" not in path and not os.path.isdir(path):
            raise UserError(f"hydra.searchpath: {path}: no such folder")
        places.append(place if "://" in path else f"file://{os.path.abspath(path)}")
    return flags.config_path, places


def _checkpoint_to_resume(line: Line) -> Path | None:
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
    if several or any(o.key_or_group in ("experiment", "hydra.mode") for o in parsed):
        single = [str(o.input_line) for o in parsed if not o.is_sweep_override() and is_choice(o, composer)]
        cfg = composer.compose(single)
        check_hydras_keys(cfg)
        if str(cfg.hydra.mode).endswith("MULTIRUN"):
            return True
    for override in several:
        key, _, value = str(override.input_line).partition("=")
        raise UserError(f"{key}: several values ({value[:60]}) need -m, one job each; for a list write {key}=[...]")
    return False


def _checked_job(overrides: list[str], composer: Composer, *, complete: bool) -> tuple[DictConfig, dict[str, Any]]:
    """The composition, and its plain and checked values. The choices are composed first: they say which keys there
    are, and Hydra would refuse a key that is not there in words that do not help."""
    parsed = [parse_override(text) for text in overrides]
    chosen = [text for text, override in zip(overrides, parsed, strict=True) if is_choice(override, composer)]
    cfg = composer.compose(chosen)
    for key in primary_keys(composer.command):
        if key not in cfg.keys():  # noqa: SIM118 - `in cfg` is False where a value is missing
            raise UserError(f"{key} is missing: --config-name or --config-path gives no configuration of this command")
    choices = cfg.hydra.runtime.choices
    reference = plain(cfg, lenient=True) if choices.get("experiment") is None else composer.reference(choices)
    known = list(tree.keys(reference))
    for override in parsed:
        if not is_choice(override, composer):
            check_key(override, known, choices)
    cfg = composer.compose(overrides)
    return cfg, checked(cfg, composer, complete=complete, reference=reference)


def _check_files(line: Line, config: dict[str, Any], folder: Path, key: str, *, sweep: bool, resuming: bool) -> None:
    """Everything on disk that can be known to be wrong before a folder is made."""
    for name in ("ckpt", "init", "guidance.guide_ckpt"):
        if (spec := tree.get(config, name)) is not None:
            # ddpm-analytic writes its result into the file
            (find_checkpoint if line.command == "analytic" else find_model)(spec, key=name)
    if (spec := config.get("lora")) is not None:
        find_adapter(spec)
    for name in _INPUTS[:-1] if resuming else _INPUTS:  # a checkpoint holds its autoencoder
        if (path := tree.get(config, name)) is not None and not os.path.exists(path):
            raise UserError(f"{name}={path}: no such file or folder")
    if config.get("dry_run") is True or line.command == "report":  # whose page goes where its runs are
        return
    typed = next((name for name in ("run_dir", "out_dir", "resume", key) if line.value(name) is not None), None)
    check_writable(folder, typed)
    if not sweep and not resuming:
        check_output(line.command, folder, typed or key)
