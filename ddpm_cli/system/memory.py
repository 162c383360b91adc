"""Memory: how much there is, whether an error means that it ran out, and what to say then."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ddpm_cli.errors import WorldError


def is_out_of_memory(error: BaseException) -> bool:
    """torch's own error of a GPU (known by its name, so that a refusal need not import torch), and what its CPU
    allocator raises in its stead."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def out_of_memory(doing: str, remedy: str, error: BaseException) -> WorldError:
    """The error to end with. doing: what, and how much of it at once ('' if that is not known); remedy: what to type
    instead, and its price."""
    reason = (str(error).splitlines() or ["no memory left"])[0].split(". ")[0][:160]
    return WorldError(f"out of memory{doing and f' {doing}'}; {remedy} [{reason}]")


@contextmanager
def out_of_memory_told(words: Callable[[], tuple[str, str]]) -> Iterator[None]:
    """Around what may run out of memory: then it is told with `words`, which are `doing` and `remedy`."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(*words(), error) from error


def halves(size: int) -> list[int]:
    """The size and its halves, rounded up, down to 1."""
    sizes = [size]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


def first_that_fits(sizes: list[int], attempt: Callable[[int], bool]) -> int:
    """The first size whose attempt succeeds without running out of memory; 1 if none does."""
    for size in sizes:
        try:
            if attempt(size):
                return size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    return 1


def available_bytes() -> float:
    """Memory that can be had: the system's, or less where a container is bound to less."""
    found = [2.0**63]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        found += [int(limit) - int(used)] if limit.isdecimal() else []
    except OSError:  # not Linux, or no such limit
        pass
    return min(found)


def peak_bytes() -> int:
    """The most memory this process has held so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere
