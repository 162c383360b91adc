"""What started this process and when: alone or as one of several ranks, as the environment says."""

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A process among those that a launcher started; `local` counts those of its machine."""

    rank: int
    world: int
    local: int
    launcher: str


# Where each launcher says a process's rank, their number, and its rank among those of its machine.
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
_NO_STEP = 0xFFFFFFF0  # from here on a step's number stands for a batch script or a shell, which srun did not start


def place_of(environ: Mapping[str, str]) -> Place | None:
    """This process's place among those that torchrun or srun started with the same command line; None if alone."""
    environ = {**environ, "SLURM_STEP_NUM_TASKS": environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS", ""))}
    step = environ.get("SLURM_STEP_ID", "")
    by_srun = step.isdecimal() and int(step) < _NO_STEP
    for launcher, keys, there in (("torchrun", _TORCHRUN, True), ("srun", _SRUN, by_srun)):
        rank, world, local = (environ.get(key, "") for key in keys)
        if there and rank.isdecimal() and world.isdecimal() and int(rank) < int(world) > 1:
            return Place(int(rank), int(world), int(local) if local.isdecimal() else 0, launcher)
    return None


def rank_of(environ: Mapping[str, str]) -> int:
    """This process's rank, 0 if it is alone."""
    place = place_of(environ)
    return place.rank if place else 0


def command_began() -> float:
    """The time.monotonic() at which this command began: when its process did, or now where a process that has worked
    before (a notebook, a test) starts another."""
    now = time.monotonic()
    return now if "torch" in sys.modules else now - _process_age()


def _process_age() -> float:
    """Seconds since this process was started; 0 where the system does not say."""
    try:
        with open("/proc/self/stat", encoding="utf-8") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])  # starttime, counted from the boot
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
