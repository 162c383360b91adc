"""ddpm-analytic: measure a trained denoiser for the analytic variance, and keep the result in its checkpoint."""

from typing import Any

from ddpm_cli.cli.main import Command
from ddpm_cli.config.context import Context


def analytic(cfg: dict[str, Any], context: Context) -> Any:
    """Measure the checkpoint's denoiser; nothing is trained."""
    from ddpm_cli.sampling.measure_variance import (
        run_analytic,  # torch: seconds that a refused command line must not cost
    )

    return run_analytic(cfg, context)


main = Command("analytic", analytic)  # the console script

if __name__ == "__main__":
    from ddpm_cli.analytic import main as importable  # so that parallel launchers can hand its jobs to workers

    importable()
