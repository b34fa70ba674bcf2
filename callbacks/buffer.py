"""A buffer between the RunEngine and a slow callback, such as the one that writes to the catalog."""

from __future__ import annotations

import copy
import logging
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from ..workers.errors import HaltereError

log = logging.getLogger(__name__)

Document = dict[str, Any]
Callback = Callable[[str, Document], Any]

PERIOD: Final = 1.0
"""Seconds for which documents are gathered: a stream_datum costs the catalog's server 37 ms, whatever its length."""

DUTY: Final = 4
"""A pause lasts this many times as long as the writing before it took: at most a fifth of a core goes into it."""

LONGEST: Final = 10.0
"""Most seconds between two writings."""

SPANS: Final = ("indices", "seq_nums")
ERRORS_KEPT: Final = 100


class FlushableBuffer:
    """Calls ``target`` with each document, in order, from a thread of its own.

    Consecutive ``stream_datum`` documents of one resource that wait here are made one. An error of the target is
    logged and kept in :attr:`errors`; the later documents still go to it.

    Parameters
    ----------
    target
        The slow callback.
    period
        Seconds for which documents are gathered, 0 for none. A start or a stop document goes at once.
    bound
        Most documents that may wait. Those beyond are dropped and counted in :attr:`dropped`: the RunEngine isn't
        held up by a catalog that is away.
    """

    def __init__(self, target: Callback, *, period: float = PERIOD, bound: int = 100_000) -> None:
        self.target = target
        self.errors: deque[Exception] = deque(maxlen=ERRORS_KEPT)
        self.dropped = 0
        self._period = period
        self._bound = bound
        self._waiting: list[tuple[str, Document]] = []
        self._datums: dict[str | None, int] = {}  # stream_resource: where its last stream_datum waits
        self._taken = 0
        self._written = 0
        self._urgent = False
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write, name="catalog buffer", daemon=True)
        self._thread.start()

    def __call__(self, name: str, doc: Document) -> None:
        """Take a document; never blocks for long, never raises."""
        name = str(name)
        with self._changed:
            if name == "stream_datum" and self._join(doc):
                return
            if len(self._waiting) >= self._bound:
                self.dropped += 1
                if self.dropped == 1:
                    log.error("%d documents wait for the catalog: the next are dropped and counted", self._bound)
                return
            if name == "stream_datum":
                self._datums[doc.get("stream_resource")] = len(self._waiting)
            # The RunEngine's later callbacks may change the document; its values are never changed in place.
            self._waiting.append((name, copy.copy(doc)))
            self._taken += 1
            if name in ("start", "stop"):
                self._urgent = True
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """How many documents haven't been given to the target yet."""
        with self._changed:
            return self._taken - self._written

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until every document taken so far has been given to the target. False if that took too long."""
        with self._changed:
            mark = self._taken
            self._urgent = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._written >= mark, timeout)

    def close(self, timeout: float | None = 30.0) -> bool:
        """Flush, and end the thread. False if documents were left behind after ``timeout`` seconds."""
        done = self.flush(timeout)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout if done else 0)
        return done

    def raise_errors(self) -> None:
        """Raise what the target raised so far, if it did.

        Raises
        ------
        HaltereError
            Names the last error and how many there were.
        """
        if self.errors or self.dropped:
            last = f"; the last: {self.errors[-1]!r}" if self.errors else ""
            raise HaltereError(f"catalog: {len(self.errors)} errors, {self.dropped} documents dropped{last}")

    def _join(self, doc: Document) -> bool:
        """Lengthen the stream_datum that waits for the same resource, if ``doc`` carries on where it ends."""
        place = self._datums.get(doc.get("stream_resource"))
        if place is None:
            return False
        joined = join_datums(self._waiting[place][1], doc)
        if joined is None:
            return False
        self._waiting[place] = ("stream_datum", joined)
        return True

    def _write(self) -> None:
        rest = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                self._changed.wait_for(lambda: self._urgent or self._closing, max(rest, self._period))
                batch, self._waiting = self._waiting, []
                self._datums.clear()
                self._urgent = False
            began = monotonic()
            for name, doc in batch:
                try:
                    self.target(name, doc)
                except Exception as error:
                    self.errors.append(error)
                    log.error("a %s document wasn't written: %r", name, error)
                with self._changed:
                    self._written += 1
                    self._changed.notify_all()
            rest = min(DUTY * (monotonic() - began), LONGEST) if self._period else 0.0


def join_datums(first: Document, second: Document) -> Document | None:
    """Return one stream_datum for two, or None if the second doesn't carry on where the first ends."""
    try:
        if any(first[key] != second[key] for key in ("stream_resource", "descriptor")):
            return None
        if any(first[span]["stop"] != second[span]["start"] for span in SPANS):
            return None
        spans = {span: {"start": first[span]["start"], "stop": second[span]["stop"]} for span in SPANS}
    except (KeyError, TypeError):  # whoever reads it will say what is wrong with it
        return None
    return {**second, **spans}
