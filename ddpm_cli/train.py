"""ddpm-train: train the denoiser that the configuration describes."""

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ddpm_cli.cli.main import Command
from ddpm_cli.config.context import Context


def train(cfg: dict[str, Any], context: Context) -> float | None:
    """Train, and return the final loss (a sweeper may minimise it)."""
    if not cfg["dry_run"]:  # said before the seconds in which torch is loaded
        chosen = " ".join(f"{group}={context.choices.get(group)}" for group in ("dataset", "model"))
        what = chosen if context.checkpoint is None else f"to go on with {context.checkpoint}"
        logging.getLogger("ddpm_cli").info("preparing %s: %s", context.run_dir, what)
    from ddpm_cli.training_run.run import run_training  # torch: seconds that a refused command line must not cost

    return run_training(cfg, context)


class _Called(ModuleType):
    """`from ddpm_cli import train` is this module, of the same name as the function of api: so it is called as that."""

    def __call__(self, settings: Any = ()) -> Path:
        from ddpm_cli import api

        return api.train(settings)


sys.modules[__name__].__class__ = _Called

main = Command("train", train)  # the console script

if __name__ == "__main__":
    from ddpm_cli.train import main as importable  # so that parallel launchers can hand its jobs to workers

    importable()
