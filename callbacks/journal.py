"""The recorder's memory of what the catalog has."""

from __future__ import annotations

import logging
import sqlite3
import threading
from pathlib import Path

log = logging.getLogger(__name__)


class Journal:
    """Which processed runs the catalog has, complete; a file of its own, so that the catalog needn't be asked."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("create table if not exists written(processed text primary key)")
        self.written = {uid for (uid,) in self._db.execute("select processed from written")}

    def add(self, processed: str) -> None:
        """Note a run."""
        with self._lock:
            self.written.add(processed)
            try:
                self._db.execute("insert or ignore into written values(?)", (processed,))
            except sqlite3.Error as error:  # it will be looked up in the catalog again, no more
                log.warning("the recorder's journal can't be written: %s", error)

    def close(self) -> None:
        """Close it."""
        self._db.close()
