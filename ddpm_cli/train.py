"""ddpm-train: train the denoiser that the configuration describes."""

from typing import Any

import hydra

from ddpm_cli import cli
from ddpm_cli.config import Context
from ddpm_cli.primary import config_dir


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="train")
@cli.job
def train(cfg: dict[str, Any], context: Context) -> float | None:
    """Train, and return the final loss (a sweeper may minimise it)."""
    from ddpm_cli.training_run import run_training  # torch: seconds that a refused command line must not cost

    return run_training(cfg, context)


def main() -> None:
    """The console script."""
    cli.run("train", train)


if __name__ == "__main__":
    from ddpm_cli.train import main  # as an importable module, so that parallel launchers can hand the task to workers

    main()
