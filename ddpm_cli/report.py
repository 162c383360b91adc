"""ddpm-report: runs, sweeps and evaluations as one HTML page and a table."""

from typing import Any

from ddpm_cli.cli.main import Command
from ddpm_cli.config.context import Context


def report(cfg: dict[str, Any], context: Context) -> None:
    """Write the page of the runs in some folders."""
    from ddpm_cli.report_page.run import run_report  # Pillow: what a refused command line need not wait for

    run_report(cfg, context)


main = Command("report", report, collects="paths")  # the console script

if __name__ == "__main__":
    from ddpm_cli.report import main as importable  # as the other doors do

    importable()
