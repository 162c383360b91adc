"""Shared by all tests: where reference data is, threads that wait as the commands have them, texts parsed once."""

import os
import signal
from pathlib import Path

import parsed_once
import pytest

# Before torch is imported: networks this small gain nothing from more threads, and lose much beside another process.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
# Ignored under nohup, and behind `&` in a script: here and in every process that a test starts.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

parsed_once.install()

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference vectors and real data, beside the checkout or in DDPM_SHARED; tests skip without it."""
    path = Path(os.environ.get("DDPM_SHARED", ROOT.parent / "shared"))
    if not (path / "vectors").is_dir():
        pytest.skip(f"no reference data at {path} (set DDPM_SHARED)")
    return path


@pytest.fixture(autouse=True)
def threads_as_before():
    """What a command does to the number of threads ends with it, or all that comes after is slower."""
    import torch  # not before OMP_NUM_THREADS is set

    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


# Files that take longest, for the processes that they start; first, so that no worker is left with one at the end.
LONG = ("training_run/test_launch.py", "training_run/test_run.py", "training/test_data_parallel.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not str(item.path).endswith(LONG))


def pytest_xdist_auto_num_workers(config) -> int:
    """Two where the whole suite runs. A few files start sooner in one process, where a debugger works too; and what is
    marked slow measures times."""
    whole = config.args == config.getini("testpaths") and config.option.markexpr == "not slow and not trials"
    return 2 if whole and not config.option.usepdb else 0
