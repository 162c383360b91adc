"""What a run folder remembers of the command lines it was made with, so that a resumed run is composed as it was."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ddpm_cli.config.overrides import key_of
from ddpm_cli.system.files import write_text

# What one invocation was about, and the next need not be.
INVOCATION_KEYS = ("run_dir", "resume", "init", "dry_run", "trust", "profile", "training.stop_at")


def resume_count(run: Path) -> int:
    """How often the run was resumed: each time leaves its own record, and the first one stays as it is."""
    numbers = [folder.name.removeprefix("resume-") for folder in run.glob(".hydra/resume-*")]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def record_of(run: Path) -> Path:
    """The folder of the newest of these records: where the command line that a run goes by stands."""
    count = resume_count(run)
    return run / ".hydra" / f"resume-{count}" if count else run / ".hydra"


def write_record(run: Path, record: Mapping[str, str], *, resumed: bool) -> None:
    """Hydra's files (name -> text) into `.hydra`, or beside them for an invocation that goes on with the run."""
    folder = run / ".hydra" / f"resume-{resume_count(run) + 1}" if resumed else run / ".hydra"
    for name, text in record.items():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, text)


def _read(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError):  # the checkpoint is what counts; this is for the checks
        return None


def remembered_overrides(run: Path, typed: list[str]) -> list[str]:
    """The run's own overrides, without those that `typed` replaces and those that were about one invocation."""
    stored = _read(record_of(run) / "overrides.yaml")
    stored = [text for text in stored if isinstance(text, str)] if isinstance(stored, list) else []
    typed_keys = {key_of(text) for text in typed}
    changed = typed_keys - {key_of(text) for text in stored if text in typed}
    return [
        text
        for text in stored
        if (key := key_of(text)) not in typed_keys
        and key not in INVOCATION_KEYS
        and not key.startswith("hydra")  # never in a record of ours: a run folder may come from a stranger
        and key.split(".")[0] not in changed  # `optimizer=sgd` typed now: adam's betas must not follow
    ]


def remembered_config_dir(run: Path) -> str | None:
    """The folder of the user's own groups the run was composed with (--config-dir, which is composed as the first entry
    of hydra.searchpath, or as Hydra has it in sweeps), if it is still there."""
    stored = _read(record_of(run) / "hydra.yaml")
    try:
        sources = stored["hydra"]["runtime"]["config_sources"]
        found = [source["path"] for source in sources if str(source["provider"]).endswith("command-line")]
    except (TypeError, KeyError):
        return None
    return next((path for path in found if Path(path).is_dir()), None)
