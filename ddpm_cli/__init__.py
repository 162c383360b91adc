"""Train denoising diffusion models and draw samples from them, from the command line or from Python.

`train`, `load_denoiser` and `generate` are the commands as functions (see ddpm_cli.api). They are imported when they
are first asked for, since torch takes seconds, which a refused command line must not cost.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_cli.api import generate, load_denoiser, train

__version__ = "0.1.0"
__all__ = ["__version__", "generate", "load_denoiser", "train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # the door, which can be called as the function
        return import_module("ddpm_cli.train")
    if name in ("generate", "load_denoiser"):
        return getattr(import_module("ddpm_cli.api"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
