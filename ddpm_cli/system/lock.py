"""An advisory lock on a file, which the system lets go of when its holder dies, however it dies."""

import errno
import logging
from typing import BinaryIO

log = logging.getLogger("ddpm_cli")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # what file systems without locks answer


class Busy(Exception):
    """Another process holds the lock."""


def lock(file: BinaryIO, waiting: str | None = None) -> bool:
    """Holds the lock of an open file until that is closed; whether it is held: some network file systems have none,
    which is told, and the work goes on without.

    If another process holds it: says `waiting` and waits, or is Busy without it. The file itself should stay: to
    delete it would let a third process lock another file of the same name.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                raise Busy from None
            log.info("%s: waiting", waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning(
            "%s cannot be locked (%s): take care that no two commands use it at once", file.name, error.strerror
        )
        return False
    return True
