"""The log in a folder of results: what is said on stderr, with the time, and the whole of an error."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from ddpm_cli.errors import UserError


class _Waiting(logging.FileHandler):
    """Keeps what is said before its folder is there until it is: folders are made when a command has been accepted."""

    def __init__(self, path: Path):
        super().__init__(path, delay=True, encoding="utf-8")
        self._folder, self._kept = path.parent, list[logging.LogRecord]()

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(record)
        while self._kept and self._folder.is_dir():
            super().emit(self._kept.pop(0))


class LogFile:
    """Takes what every logger says until it is closed. The file is made when something is said."""

    def __init__(self, path: Path):
        self._handler = _Waiting(path)
        self._handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
        logging.getLogger().addHandler(self._handler)

    def write_error(self, error: BaseException) -> None:
        """The error, with its traceback unless it is the user's own, into the file alone: stderr gets a line of it."""
        info = None if isinstance(error, UserError) else (type(error), error, error.__traceback__)
        record = logging.LogRecord("ddpm_cli", logging.ERROR, __file__, 0, "%s", (error,), info)
        with contextlib.suppress(OSError):
            self._handler.handle(record)

    @contextlib.contextmanager
    def telling_errors(self) -> Iterator[None]:
        """The error that ends the context is written."""
        try:
            yield
        except Exception as error:
            self.write_error(error)
            raise

    def close(self) -> None:
        logging.getLogger().removeHandler(self._handler)
        self._handler.close()


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """A log file for the time of the context, with the error that ends it."""
    file = LogFile(path)
    try:
        with file.telling_errors():
            yield
    finally:
        file.close()
