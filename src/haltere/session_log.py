"""What is logged in a session: all of it, with tracebacks, to a file; of our warnings one line each to the terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOGGERS = ("bluesky", "haltere")


class Terminal(logging.Handler):
    """Prints a record's message to standard error, in one line and without its traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print it. Standard error is looked up each time: a progress bar may stand in for it."""
        try:
            line = " ".join(record.getMessage().splitlines())
            print(f"haltere: {line}", file=sys.stderr, flush=True)
        except (TypeError, ValueError, OSError):  # a message that can't be formatted, a terminal that is gone
            self.handleError(record)


class LogFile(logging.FileHandler):
    """A log's file; that it can't be written, on a full disk, is said once and stops nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, delay=True)
        self.unwritten = 0
        """Records that aren't in the file."""
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name for it
        """Count it."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.unwritten += 1
        if self.unwritten == 1:
            print(f"haltere: {self.baseFilename} can't be written: {error.strerror}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close it, whatever of it could be written."""
        with suppress(OSError):
            super().close()


@contextmanager
def session_log(path: Path) -> Iterator[None]:
    """Keep the logs of bluesky and haltere in a file; show haltere's warnings and errors.

    bluesky's errors come to the prompt as exceptions, so they are only kept.

    Parameters
    ----------
    path
        The file, appended to; made when there is something to write. Its folder must be there.
    """
    file = LogFile(path)
    terminal = Terminal(logging.WARNING)
    propagated = {name: logging.getLogger(name).propagate for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).addHandler(file)
        logging.getLogger(name).propagate = False
    logging.getLogger("haltere").addHandler(terminal)
    try:
        yield
    finally:
        logging.getLogger("haltere").removeHandler(terminal)
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(file)
            logging.getLogger(name).propagate = propagated[name]
        file.close()
