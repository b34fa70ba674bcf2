"""Writes runs to a Tiled catalog, each once and whole, whatever happens to the server meanwhile."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from ..workers.errors import HaltereError, PoolError
from ..workers.files.references import STREAMED

log = logging.getLogger(__name__)

Document = dict[str, Any]

TRIES: Final = 4
"""So often a run is written that the server itself refuses; a server that is away is waited for without end."""

FIRST_PAUSE: Final = 0.5  # s
LONGEST_PAUSE: Final = 3.0  # s
MOST_KEPT: Final = 200_000
"""Most documents of a run that are kept to write it again."""


class Rewriting:
    """A callback around Tiled's writer. A run whose writing failed is deleted and written again from its start.

    A half-written run can't be carried on: nobody knows which of the failed request's parts the server has done. A run
    that the catalog holds complete is left alone.

    Call it from one thread. It blocks while the server is away.

    Parameters
    ----------
    catalog
        Returns the catalog's client. It is asked again after each failure.
    batch_size
        Rows and frames that go to the server in one request.
    finished
        Called with a run's uid when it is in the catalog, complete.
    """

    def __init__(
        self, catalog: Callable[[], Any], *, batch_size: int, finished: Callable[[str], None] | None = None
    ) -> None:
        self._catalog = catalog
        self._batch_size = batch_size
        self._finished = finished
        self._runs: dict[str, _Run] = {}
        self._starts: dict[str, str] = {}  # descriptor or stream_resource: its run
        self._streamed: dict[str, str] = {}  # stream_resource that is no file: its run
        self.closing = threading.Event()
        """Set it to stop waiting for a server that is away."""

    def __call__(self, name: str, doc: Document) -> None:
        """Write a document.

        Raises
        ------
        HaltereError
            The run is given up; its later documents are passed over.
        """
        if name == "start":
            self._runs[doc["uid"]] = _Run()
        if name == "stream_resource" and doc.get("mimetype") == STREAMED:
            self._streamed[doc["uid"]] = str(doc.get("run_start", ""))
        if doc.get("uid" if name == "stream_resource" else "stream_resource") in self._streamed:
            return  # of frames that nobody keeps the catalog has nothing to show
        uid = self._run_of(name, doc)
        run = self._runs.get(uid)
        if run is None or run.skipped:
            if name == "stop":
                self._forget(uid)
            return
        if len(run.documents) < MOST_KEPT:
            run.documents.append((name, doc))
        else:
            run.overflowed = True
        try:
            self._write(uid, run, name, doc)
        except Exception:
            run.skipped = True
            run.documents.clear()
            raise
        finally:
            if name == "stop":
                self._forget(uid)
        if name == "stop" and self._finished is not None:
            self._finished(uid)

    def _write(self, uid: str, run: _Run, name: str, doc: Document) -> None:
        import httpx

        tries, pause = 0, FIRST_PAUSE
        while True:
            try:
                if run.writer is not None:
                    run.writer(name, doc)
                else:
                    self._write_again(uid, run)
                if tries:
                    log.warning("run %s: written again from its start, after %d failures", uid, tries)
                return
            except Exception as error:
                run.writer = None
                tries += 1
                # A server's answer that it can't may be its last word; no answer never is.
                final = not isinstance(error, httpx.TransportError | PoolError) and tries >= TRIES
                if final or run.overflowed or self.closing.is_set():
                    raise HaltereError(f"run {uid} isn't in the catalog whole: {first_line(error)}") from error
                if tries == 1:
                    log.warning("run %s: the catalog can't be written; trying on: %s", uid, first_line(error))
            self.closing.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _write_again(self, uid: str, run: _Run) -> None:
        """Write all the documents so far, after deleting what the catalog has of the run."""
        from bluesky_tiled_plugins import TiledWriter

        catalog = self._catalog()
        try:
            there = catalog[uid]
        except KeyError:
            there = None
        if there is not None:
            if there.metadata.get("stop"):
                run.skipped = True
                run.documents.clear()
                if self._finished is not None:
                    self._finished(uid)
                return
            catalog.delete_contents(uid, recursive=True, external_only=False)
        # Without the normaliser (which is for documents of before 2021) an event page goes six times as fast; with
        # max_array_size=0 short arrays are arrays too, and not strings.
        writer = TiledWriter(catalog, batch_size=self._batch_size, normalizer=None, max_array_size=0)
        for name, doc in run.documents:
            writer(name, doc)
        run.writer = writer

    def _run_of(self, name: str, doc: Document) -> str:
        if name == "start":
            return str(doc["uid"])
        if "run_start" in doc:
            uid = str(doc["run_start"])
            if "uid" in doc and name != "stop":
                self._starts[doc["uid"]] = uid
            return uid
        return self._starts.get(doc.get("descriptor") or doc.get("resource") or "", "")

    def _forget(self, uid: str) -> None:
        self._runs.pop(uid, None)
        self._streamed = {key: run for key, run in self._streamed.items() if run != uid}
        self._starts = {key: run for key, run in self._starts.items() if run != uid}


class _Run:
    __slots__ = ("documents", "overflowed", "skipped", "writer")

    def __init__(self) -> None:
        self.documents: list[tuple[str, Document]] = []
        self.writer: Callable[[str, Document], None] | None = None
        self.skipped = False
        self.overflowed = False


def first_line(error: Exception) -> str:
    r"""Return an error's kind, and the first line of what it says.

    >>> first_line(RuntimeError("500 Internal Server Error\nFor more information, ask"))
    'RuntimeError: 500 Internal Server Error'
    """
    return f"{type(error).__name__}: {error}".splitlines()[0]
