"""ddpm-export: a trained denoiser in the format of another program."""

from typing import Any

from ddpm_cli.cli.main import Command
from ddpm_cli.config.context import Context


def export(cfg: dict[str, Any], context: Context) -> Any:
    """Write a checkpoint as other programs load it, into the output folder."""
    from ddpm_cli.build.export import run_export  # torch: seconds that a refused command line must not cost

    return run_export(cfg, context)


main = Command("export", export)  # the console script

if __name__ == "__main__":
    from ddpm_cli.export import main as importable  # so that parallel launchers can hand its jobs to workers

    importable()
