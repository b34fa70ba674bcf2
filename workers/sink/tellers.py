"""Who told the sink of each run, and whether anybody is left to say how it ends."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from ..wire.messages import RunClose, RunOpen, StreamTotal

SILENT: Final = 5.0
"""Seconds without a word from a session after which it is looked whether its process is still there."""

ELSEWHERE: Final = 600.0
"""The same for one of which nothing can be seen from here: then it is held to be gone."""

LOOK: Final = 1.0
"""Seconds between two looks."""

REASON: Final = "the session that measured it ended without a stop document"
UNNUMBERED: Final = 0
"""Serial of a message that no dispatcher sent."""
CLOSED_BY: Final = "closed_by"
"""A key of the stop document that the sink writes for a run that nobody closed."""

Gone = Callable[[str], bool | None]
"""Given a session's name: whether its process is gone; None if that can't be seen from here."""


class Tellers:
    """The dispatchers' sessions that told of runs.

    Parameters
    ----------
    told
        What the ledger has: of each open run the session that told of it, and its name.
    gone
        Looks for a session's process.
    """

    def __init__(
        self,
        told: Mapping[str, tuple[int, str]] | None = None,
        gone: Gone = lambda _: None,
    ) -> None:
        self._runs = {run: session for run, (session, _) in (told or {}).items()}
        self._names = dict((told or {}).values())
        self._gone = gone
        self._heard: dict[int, float] = {}
        self._left: set[int] = set()
        self._closing: set[str] = set()
        self._began: float | None = None
        self._look_at = float("-inf")

    def opens(self, run: str, session: int, name: str) -> None:
        """Note that a session tells of a run; it takes over from whoever did before."""
        self._runs[run] = session
        self._names[session] = name
        self._closing.discard(run)

    def hears(self, session: int, now: float) -> None:
        """Note that a session lives."""
        self._heard[session] = now
        self._left.discard(session)

    def leaves(self, session: int) -> None:
        """Note that a session says of itself that it ends."""
        self._left.add(session)
        self._look_at = float("-inf")

    def closes(self, run: str) -> None:
        """Note that the run's close has come, though it may not be on disk yet."""
        self._closing.add(run)

    def name(self, run: str) -> str:
        """Return the name of the session that told of a run; nothing if that isn't known."""
        return self._names.get(self._runs.get(run, -1), "")

    def abandoned(self, open_runs: Iterable[str], now: float) -> Iterator[str]:
        """Yield those of the open runs, now and then, that nobody will ever close."""
        if now < self._look_at:
            return
        self._look_at = now + LOOK
        if self._began is None:
            self._began = now
        runs = [run for run in open_runs if run not in self._closing]
        verdicts: dict[int, bool] = {}
        for run in runs:
            session = self._runs.get(run, -1)
            if session not in verdicts:
                verdicts[session] = self._is_gone(session, now)
            if verdicts[session]:
                yield run

    def forget(self, run: str) -> None:
        """Forget a run that is complete, and its session if no other run is of it."""
        self._closing.discard(run)
        session = self._runs.pop(run, None)
        if session is not None and session not in self._runs.values():
            self._names.pop(session, None)
            self._heard.pop(session, None)
            self._left.discard(session)

    def _is_gone(self, session: int, now: float) -> bool:
        if session in self._left:
            return True
        silent = now - self._heard.get(session, self._began or now)
        if silent <= SILENT:
            return False
        gone = self._gone(self._names.get(session, ""))
        return silent > ELSEWHERE if gone is None else gone


def close(run: RunOpen, totals: Mapping[str, int], wall: float) -> RunClose:
    """Return what closes a run in its session's place; ``wall`` in s since 1970."""
    stop = {
        "uid": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{run.run} {run.processed} abandoned")),
        "run_start": run.run,
        "time": wall,
        "exit_status": "fail",
        "reason": REASON,
        CLOSED_BY: "sink",
    }
    counts = [StreamTotal(stream, n) for stream, n in totals.items()]
    return RunClose(UNNUMBERED, run.run, counts, "fail", json.dumps(stop).encode())


def by_sink(message: RunClose) -> bool:
    """Return whether a sink closed the run, because nobody else was left to."""
    return f'"{CLOSED_BY}": "sink"'.encode() in message.stop
