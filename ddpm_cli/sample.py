"""ddpm-sample: draw images from a trained denoiser."""

from typing import Any

from ddpm_cli.cli.main import Command
from ddpm_cli.config.context import Context


def sample(cfg: dict[str, Any], context: Context) -> Any:
    """Draw images from a checkpoint and write them into the output folder."""
    from ddpm_cli.sampling.run import run_sampling  # torch: seconds that a refused command line must not cost

    return run_sampling(cfg, context)


main = Command("sample", sample)  # the console script

if __name__ == "__main__":
    from ddpm_cli.sample import main as importable  # so that parallel launchers can hand its jobs to workers

    importable()
