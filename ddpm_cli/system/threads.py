"""How many processor threads share the work of an operator."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean

import torch

_LOOKS, _APART = 10, 0.01  # at how many processes run, and the seconds between
_STAT, _QUOTA = Path("/proc/stat"), Path("/sys/fs/cgroup/cpu.max")


@contextmanager
def shared_by(wanted: int | str) -> Iterator[int]:
    """So many threads inside; of `auto` as many as processors are free at this moment.

    Threads wait for each other at the end of every operator. Where one of them has to share its processor with another
    process, all wait until it is its turn again, so that two beside busy processes are three times slower than one.
    """
    before = torch.get_num_threads()
    count = free_processors(before) if wanted == "auto" else int(wanted)
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)


def free_processors(most: int) -> int:
    """At most `most`, at least 1. OMP_NUM_THREADS in the environment is a choice of its own, which is kept."""
    if "OMP_NUM_THREADS" in os.environ:
        return most
    return max(1, min(most, _quota(), (os.cpu_count() or most) - _others_running()))


def _others_running() -> int:
    """How many threads of other processes are at work or wait for a processor; 0 where the system does not tell."""
    looks = []
    try:
        for _ in range(_LOOKS):
            lines = _STAT.read_text().splitlines()
            looks.append(int(next(line.split()[1] for line in lines if line.startswith("procs_running"))))
            time.sleep(_APART)
    except (OSError, ValueError, StopIteration):
        return 0
    return max(0, round(mean(looks)) - 1)  # this one looks


def _quota() -> int:
    """Processors' worth of time that a container may use, rounded up."""
    try:
        quota, period = _QUOTA.read_text().split()
        return max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):  # none, or `max`
        return os.cpu_count() or 1
