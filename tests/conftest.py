"""Shared by all tests: where reference data is, and threads that wait as the commands have them."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # before torch is imported
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, here and in every process that a test starts

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference vectors and real data, beside the checkout or in DDPM_SHARED; tests skip without it."""
    path = Path(os.environ.get("DDPM_SHARED", ROOT.parent / "shared"))
    if not (path / "vectors").is_dir():
        pytest.skip(f"no reference data at {path} (set DDPM_SHARED)")
    return path
