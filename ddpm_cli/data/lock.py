"""One run at a time: an advisory lock that the system releases when its holder dies, however it dies."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

log = logging.getLogger(__name__)


@contextmanager
def locked(file: BinaryIO, waiting: str) -> Iterator[bool]:
    """Hold the lock of an open file, which is closed at the end; says `waiting` if another run holds it.

    Yields whether the lock is held: some network file systems have none, and there the work goes on without.
    The file itself stays: to delete it would let a third run lock another file of the same name.
    """
    with file:
        yield _acquire(file, waiting)


def _acquire(file: BinaryIO, waiting: str) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: waiting", waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        log.warning("%s cannot be locked (%s): do not prepare one data set in two runs at once", file.name, error)
        return False
    return True
