"""Processed runs on their way to the catalog."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Final

from ..workers.wire.documents import unpack
from .buffer import FlushableBuffer
from .catalog import Catalog
from .journal import Journal
from .recording import Recorded
from .rewriting import Rewriting

MOST_WAITING: Final = 20_000
"""Documents that may wait in memory for the catalog, beside those kept for the sessions."""

BATCH_SIZE: Final = 500
"""Rows that go to the catalog in one request."""


class CatalogWriter:
    """Hands the documents of runs that the catalog hasn't got to its writer, which has a thread of its own."""

    def __init__(self, uri: str, api_key_file: Path, journal: Journal) -> None:
        self._journal = journal
        self._importing: threading.Thread | None = None
        self._buffer = FlushableBuffer(
            # A client of its own for each try: after a failure nothing of the old connection is trusted.
            Rewriting(lambda: Catalog.connect(uri, api_key_file).processed, batch_size=BATCH_SIZE, finished=journal.add)
        )

    def get_ready(self) -> None:
        """Import Tiled, in a thread: it takes seconds, so better before the first run. May be called again."""
        if self._importing is None:
            self._importing = threading.Thread(target=import_module, args=("bluesky_tiled_plugins",), daemon=True)
            self._importing.start()

    @property
    def waiting(self) -> int:
        """How many documents wait in memory for the catalog."""
        return self._buffer.waiting

    def write(self, runs: Iterable[Recorded]) -> None:
        """Hand over what is new."""
        room = MOST_WAITING - self._buffer.waiting
        for recorded in runs:
            if recorded.row.processed not in self._journal.written:
                new = recorded.documents[recorded.written :][: max(room, 0)]
                for document in new:
                    self._buffer(*unpack(document))
                recorded.written += len(new)
                room -= len(new)
