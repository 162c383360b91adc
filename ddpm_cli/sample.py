"""ddpm-sample: draw images from a trained denoiser."""

from typing import Any

import hydra

from ddpm_cli import cli
from ddpm_cli.config import Context
from ddpm_cli.primary import config_dir


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="sample")
@cli.job
def sample(cfg: dict[str, Any], context: Context) -> Any:
    """Draw images from a checkpoint and write them into the output folder."""
    from ddpm_cli.sampling_run import run_sampling  # torch: seconds that a refused command line must not cost

    return run_sampling(cfg, context)


def main() -> None:
    """The console script."""
    cli.run("sample", sample)


if __name__ == "__main__":
    from ddpm_cli.sample import main  # as an importable module, so that parallel launchers can hand the task to workers

    main()
