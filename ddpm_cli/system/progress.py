"""Progress bars on stderr: where a person sees them, which is at a terminal and in a notebook."""

import sys
import threading
from typing import Any


def is_open(stream: Any) -> bool:
    """Whether it can be written to: a program without a console may have None for its streams, or have closed them."""
    return stream is not None and not stream.closed


def is_seen(stream: Any) -> bool:
    """Whether a person looks at it: a terminal, or what the kernel of a notebook shows."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    notebook = shell is not None and "IPKernelApp" in shell.config
    return is_open(stream) and (notebook or stream.isatty())


def progress_bar(*iterable: Any, **options: Any) -> Any:
    """tqdm's bar: a widget in a notebook that can show one. Where nobody looks it writes nothing, and its `disable` is
    true."""
    if "IPython" in sys.modules:
        from tqdm.auto import tqdm  # what it finds out about widgets is an import that a command need not pay for
    else:
        from tqdm import tqdm
    from tqdm.std import tqdm as common

    if "_lock" not in vars(common):
        # tqdm's own lock is shared with forked processes: one that is killed while it holds it would stop all others.
        common.set_lock(threading.RLock())
    return tqdm(*iterable, **{"disable": not is_seen(sys.stderr), **options})
