"""Reading scattered rows of a mapped file without waiting for each.

A row of a map that is not in memory is read when it is touched, one page fault after the other, each with the pages
around it that nobody asked for. Told beforehand which rows will be touched, the system reads them all at once, and no
more: of a file out of memory 128 rows of 3 KiB take 1 ms instead of 200, of 192 KiB 20 to 70 instead of 200 to 330
(scripts/bench_data.py). Sorted rows are no faster then, and MADV_RANDOM, which helps by itself, no more on top.
"""

import ctypes
import mmap
import sys
from typing import Any

from torch import Tensor

_LARGE = 2**28  # bytes of a set that is worth the calls; a smaller one is in memory after its first epoch


def will_need(items: Tensor, index: Tensor) -> None:
    """Tells the system that these rows of `items` (N, ...), on the CPU and contiguous, are about to be read. Elsewhere
    than on Linux, and of a small set, nothing is told."""
    if _madvise is None or items.nbytes < _LARGE:
        return
    base, row = items.data_ptr(), items[0].nbytes
    for number in index.tolist():
        start = (base + number * row) // mmap.PAGESIZE * mmap.PAGESIZE
        _madvise(start, base + (number + 1) * row - start, mmap.MADV_WILLNEED)  # if that fails, it is as before


_madvise: Any = ctypes.CDLL(None).madvise if sys.platform == "linux" else None
if _madvise is not None:
    _madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
