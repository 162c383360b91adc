"""MLflow: a tracking server, a database, or a folder."""

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ddpm_cli.training.trackers.aside import Ledger
from ddpm_cli.training.trackers.base import Settings, Tracker

_STATUS = {"done": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_AT_ONCE = 100  # parameters that a call may have
_NO_NAME = re.compile(r"[^\w\-. :/]")  # what no name may hold there


class MLflow(Tracker):
    """A run of the experiment `project`, by MLflow's client, which leaves the caller's own active run alone."""

    def __init__(self, ledger: Ledger, name: str, *, project: str, uri: str | None):
        # A server that does not answer is not asked for minutes; a folder is what was asked for.
        for key, value in (("HTTP_REQUEST_MAX_RETRIES", "2"), ("ALLOW_FILE_STORE", "true")):
            os.environ.setdefault(f"MLFLOW_{key}", value)
        from mlflow import MlflowClient, entities

        self._entities, self._ledger = entities, ledger
        where = uri or os.environ.get("MLFLOW_TRACKING_URI") or "outputs/mlruns"
        self._client: Any = MlflowClient(tracking_uri=where if ":" in where else Path(where).absolute().as_uri())
        self._new = not ledger.id
        if self._new:
            known = self._client.get_experiment_by_name(project)
            experiment = known.experiment_id if known else self._client.create_experiment(project)
            ledger.name(self._client.create_run(experiment, run_name=name).info.run_id)
        else:
            self._client.update_run(ledger.id, status="RUNNING")

    def begin(self, settings: Settings, config: str, step: int) -> None:
        if self._new:  # what is written there of a run cannot be written again
            found = [self._entities.Param(key, str(value)) for key, value in settings.items()]
            for start in range(0, len(found), _AT_ONCE):
                self._client.log_batch(self._ledger.id, params=found[start : start + _AT_ONCE])
        self._client.log_text(self._ledger.id, config, f"config/from_step_{step:08d}.yaml")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        if news := self._ledger.news(values, step):
            self._metrics({tag: values[tag] for tag in news}, step)
            self._ledger.told(news, step)

    def picture(self, tag: str, picture: Image.Image, step: int) -> None:
        if self._ledger.news([tag], step):
            self._client.log_image(self._ledger.id, picture, key=tag, step=step)
            self._ledger.told([tag], step)

    def sound(self, tag: str, samples: Tensor, sample_rate: int, step: int, file: Path) -> None:
        if self._ledger.news([tag], step):
            self._client.log_artifact(self._ledger.id, str(file), "samples")
            self._ledger.told([tag], step)

    def rewind(self, step: int) -> None:
        """Nothing there can be taken back."""

    def end(self, status: str, figures: Mapping[str, float]) -> None:
        self._metrics({f"final/{key}": value for key, value in figures.items()}, 0)
        self._client.set_terminated(self._ledger.id, _STATUS[status])

    def _metrics(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        made = [self._entities.Metric(_NO_NAME.sub("_", tag), value, now, step) for tag, value in values.items()]
        self._client.log_batch(self._ledger.id, metrics=made)
