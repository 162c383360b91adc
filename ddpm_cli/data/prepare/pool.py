"""Work on many small pieces, in order, on all cores: by threads, so that no child process can be killed or stay."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Piece = TypeVar("Piece")
Result = TypeVar("Result")

MAX_THREADS = 16
# Pillow holds the interpreter lock for about 0.1 ms an image; faster images gain nothing from more threads (measured:
# 32x32 JPEGs, 10,000 a second in one thread and 8,000 in two)
_MIN_SECONDS = 0.4e-3


def in_order(work: Callable[[Sequence[Piece]], Result], pieces: Iterable[Piece], chunk: int = 16) -> Iterator[Result]:
    """`work(chunk of pieces)` for one chunk after the other; its exceptions come through. Of the pieces no more are
    asked for than are about to be worked on.

    Closing the iterator cancels what has not begun and waits for what has.
    """
    rest = iter(pieces)
    chunks = iter(lambda: list(islice(rest, chunk)), [])
    for number, some in enumerate(chunks):
        started = time.perf_counter()
        yield work(some)
        # the first chunk also pays for imports; the consumer's time counts too, which only errs towards threads
        if number > 0 and time.perf_counter() - started > _MIN_SECONDS * len(some):
            break
    pool = ThreadPoolExecutor(min(MAX_THREADS, _num_cores()), thread_name_prefix="decode")
    waiting: deque[Future[Result]] = deque()
    try:
        for some in chunks:
            waiting.append(pool.submit(work, some))
            if len(waiting) > 4 * MAX_THREADS:  # a bound on what lies finished in memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _num_cores() -> int:
    """Cores this process may use, which in a container or under a queue are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
