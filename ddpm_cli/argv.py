"""The command line before Hydra reads it: paths get the quotes its grammar wants, ranks beside the first keep quiet."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_PATH_KEY = re.compile(
    r"(\+{0,2}(?:ckpt|resume|run_dir|out_dir|init|[\w.]+\.(?:root|cache|guide_ckpt)|edit\.(?:image|mask|to)))=(.+)",
    re.DOTALL,
)


def with_quoted_paths(argv: Sequence[str], *, sweep: bool = False) -> list[str]:
    """`ckpt=a=b.pt` as `ckpt='a=b.pt'`; null, quoted values and interpolations as they are, lists of a sweep too."""
    return [_quoted(argument, sweep) for argument in argv]


def _quoted(argument: str, sweep: bool) -> str:
    match = _PATH_KEY.fullmatch(argument)
    if match is None:
        return argument
    key, value = match.groups()
    several = sweep and ("," in value or re.match(r"(choice|sort|shuffle|glob)\(", value))
    if value == "null" or value[0] in "'\"" or "${" in value or several:
        return argument
    # In Hydra's quotes a backslash is itself unless a quote follows, so those before a quote or the end are doubled.
    value = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"{key}='{value}'"


@dataclass(frozen=True)
class Place:
    """A process among those that a launcher started; `local` counts those of its machine."""

    rank: int
    world: int
    local: int
    launcher: str


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


def quiet_rank(overrides: Sequence[str]) -> list[str]:
    """The overrides for a rank beside the first: one folder and one log are enough."""
    dropped = ("hydra.run.dir=", "hydra.output_subdir=", "hydra/job_logging=", "hydra/hydra_logging=")
    kept = [override for override in overrides if not override.startswith(dropped)]
    no_log = ["hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]
    return [*kept, *no_log, "hydra.output_subdir=null", "hydra.run.dir=."]
