"""ddpm-eval: how good the images of a trained denoiser are."""

from typing import Any

from ddpm_cli.cli.main import Command
from ddpm_cli.config.context import Context


def evaluate(cfg: dict[str, Any], context: Context) -> Any:
    """Measure a checkpoint's images, or those of a folder, and write evaluation.json into the output folder."""
    from ddpm_cli.evaluation.run import run_evaluation  # torch: seconds that a refused command line must not cost

    return run_evaluation(cfg, context)


main = Command("eval", evaluate)  # the console script

if __name__ == "__main__":
    from ddpm_cli.eval import main as importable  # so that parallel launchers can hand its jobs to workers

    importable()
