"""Weights & Biases (wandb.ai, or a server of one's own), also without a network."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ddpm_cli.training.trackers.aside import PATIENCE, Ledger
from ddpm_cli.training.trackers.base import Settings, Tracker


class WandB(Tracker):
    """A run there. Its files are beside the ledger; what a run without a network left in them, `wandb sync` sends."""

    def __init__(self, run: Path, ledger: Ledger, name: str, *, project: str, entity: str | None, mode: str):
        os.environ.setdefault("WANDB_SILENT", "true")  # stdout is for results; and no question from a thread
        import wandb

        self._wandb, self._folder, self._ledger = wandb, run, ledger
        if not ledger.id:
            ledger.name(secrets.token_hex(4))
        settings = wandb.Settings(
            silent=True, console="off", init_timeout=PATIENCE, finish_timeout=PATIENCE, reinit="create_new"
        )
        self._run: Any = wandb.init(
            project=project, entity=entity, mode=mode, name=name, id=ledger.id, resume="allow",  # type: ignore[arg-type]
            dir=str(ledger.path.parent), settings=settings,
        )  # fmt: skip

    def begin(self, settings: Settings, config: str, step: int) -> None:
        self._run.config.update(dict(settings), allow_val_change=True)
        self._run.save(str(self._folder / "config.yaml"), base_path=str(self._folder), policy="now")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._log(values, step)

    def picture(self, tag: str, picture: Image.Image, step: int) -> None:
        self._log({tag: self._wandb.Image(picture)}, step)

    def sound(self, tag: str, samples: Tensor, sample_rate: int, step: int, file: Path) -> None:
        self._log({tag: self._wandb.Audio(str(file))}, step)

    def rewind(self, step: int) -> None:
        """Nothing there can be taken back."""

    def end(self, status: str, figures: Mapping[str, float]) -> None:
        self._run.summary.update({"status": status, **{f"final/{key}": value for key, value in figures.items()}})
        self._run.finish(exit_code=int(status == "failed"))

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        if news := self._ledger.news(values, step):
            self._run.log({tag: values[tag] for tag in news}, step=step)
            self._ledger.told(news, step)
