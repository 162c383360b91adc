"""ddpm-analytic: measure a trained denoiser for the analytic variance, and keep the result in its checkpoint."""

from typing import Any

import hydra

from ddpm_cli import cli
from ddpm_cli.config import Context, config_dir


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="analytic")
@cli.job
def analytic(cfg: dict[str, Any], context: Context) -> Any:
    """Measure the checkpoint's denoiser; nothing is trained."""
    from ddpm_cli.analytic_run import run_analytic  # torch: seconds that a refused command line must not cost

    return run_analytic(cfg, context)


def main() -> None:
    """The console script."""
    cli.run("analytic", analytic)


if __name__ == "__main__":
    from ddpm_cli.analytic import main  # as an importable module, for launchers that hand the task to workers

    main()
