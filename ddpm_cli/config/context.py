"""What a job knows beside its configuration."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from ddpm_cli.config.groups import OF_WEIGHTS, chosen_by_experiment
from ddpm_cli.config.overrides import typed_keys


@dataclass(frozen=True)
class Context:
    """How a job was started, and where its results go."""

    run_dir: Path  # absolute; of a single run it need not exist yet: nothing is made before the command is accepted
    overrides: list[str] = field(default_factory=list)  # typed now, without those that a resumed run remembers
    multirun: bool = False
    choices: dict[str, str | None] = field(default_factory=dict)  # group -> option
    began: float = field(default_factory=time.monotonic)  # when what a budget counts began: the process, or the job
    checkpoint: Path | None = None  # what `resume` names, to go on from
    says_folder: bool = True  # at its end, on stdout
    record: dict[str, str] = field(default_factory=dict)  # Hydra's files of a single run, for its folder's .hydra

    @property
    def typed_keys(self) -> list[str]:
        """The keys that were typed; a group's name for a choice."""
        return typed_keys(self.overrides)

    @property
    def chosen_keys(self) -> list[str]:
        """The same without an experiment that goes with any network, as one that tunes it does."""
        groups = chosen_by_experiment(self.choices.get("experiment") or "")
        return [key for key in self.typed_keys if key != "experiment" or groups is None or groups & OF_WEIGHTS]
