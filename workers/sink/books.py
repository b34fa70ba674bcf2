"""The sink's books: what is expected and what is done, per run and stream, as far as the ledger has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from ..intervals import IntervalSet
from ..ledger.rows import Control, account, mark, stream_total
from ..reducers.base import Output
from ..states import StateTable
from ..wire.messages import BACKFILLED, LIVE, STATUS_NAMES, Done, RunOpen, StreamOpen
from .rates import Lag, Rate

MAX_RANGES: Final = 2000
"""Ranges in one DONE."""

Outputs = dict[str, dict[str, Output]]


@dataclass(slots=True)
class Books:
    """What became of the frames of one (run, stream, cfg)."""

    sets: tuple[IntervalSet, ...] = field(default_factory=lambda: tuple(IntervalSet() for _ in STATUS_NAMES))
    done: IntervalSet = field(default_factory=IntervalSet)
    buffered: set[int] = field(default_factory=set)
    live: Rate = field(default_factory=Rate)
    backfilled: Rate = field(default_factory=Rate)
    lag: Lag = field(default_factory=Lag)

    def rate(self, status: bytes, now: float) -> None:
        """Note how many frames came to disk just now, and how."""
        self.live.add(status.count(LIVE), now)
        self.backfilled.add(status.count(BACKFILLED), now)

    def mark(self, first: int, status: bytes) -> None:
        """Note a batch that is on disk."""
        mark(self.sets, first, status)
        self.done.add(first, first + len(status))


@dataclass(slots=True)
class StreamState:
    """A stream that is open."""

    open: StreamOpen
    outputs: Outputs
    books: Books
    expected: IntervalSet = field(default_factory=IntervalSet)


class Phase(StrEnum):
    """Where a run stands."""

    OPEN = "open"
    CLOSED = "closed"
    FINISHED = "finished"
    COMPLETED = "completed"


class RunEvent(StrEnum):
    """What happens to a run."""

    CLOSED = "closed"
    REPEATED = "closed again"
    DONE = "all done"
    WRITTEN = "written"
    RESTORED = "restored"


RUN: Final = StateTable(
    "run",
    {
        Phase.OPEN: "Frames of it are promised and reduced.",
        Phase.CLOSED: "It is known how many frames there are; some aren't on disk.",
        Phase.FINISHED: "Every promised frame is on disk; its NeXus file is being closed.",
        Phase.COMPLETED: "The ledger has it as complete: its stop document can be written.",
    },
    [
        ([Phase.OPEN], RunEvent.CLOSED, Phase.CLOSED, "It has ended, and so many frames of each stream were promised."),
        ([Phase.CLOSED], RunEvent.REPEATED, Phase.CLOSED, "That is said again: the first word stands."),
        ([Phase.FINISHED], RunEvent.REPEATED, Phase.FINISHED, "That is said again: the first word stands."),
        ([Phase.COMPLETED], RunEvent.REPEATED, Phase.COMPLETED, "That is said again: the first word stands."),
        ([Phase.CLOSED], RunEvent.DONE, Phase.FINISHED, "The last promised frame is on disk."),
        ([Phase.FINISHED], RunEvent.WRITTEN, Phase.COMPLETED, "Its NeXus file is closed, or given up for a reason."),
        ([Phase.CLOSED], RunEvent.RESTORED, Phase.COMPLETED, "A new sink finds it complete in the ledger."),
    ],
)


@dataclass(slots=True)
class RunState:
    """A run as far as the ledger has it."""

    open: RunOpen
    control: list[Control] = field(default_factory=list)
    streams: dict[str, StreamState] = field(default_factory=dict)
    totals: dict[str, int] | None = None
    duplicates: int = 0
    phase: Phase = Phase.OPEN
    completed: float | None = None
    scan_id: int | None = None
    started: float | None = None
    stopped: float | None = None
    """Times of its start and stop documents, s since 1970."""
    abandoned: bool = False
    """Its session is gone, and the sink closed it."""
    late: bool = False
    """Of an abandoned one: that somebody goes on to tell of it has been said."""
    nexus: str | None = None

    def read_start(self) -> None:
        """Take from the start document what people know a run by."""
        start = json.loads(self.open.start)
        self.scan_id = start["scan_id"] if isinstance(start.get("scan_id"), int) else None
        self.started = _time(start)

    def read_stop(self, stop: bytes) -> None:
        """Take from the stop document when it ended."""
        self.stopped = self.stopped or _time(json.loads(stop))

    @property
    def is_from_files(self) -> bool:
        """Whether the raw run had ended before this reduction of it began, or went on."""
        return any(state.open.total is not None for state in self.streams.values())

    def total(self, stream: str) -> int:
        """Return how many frames the stream has, as far as is known."""
        state = self.streams.get(stream)
        return stream_total(self.totals, stream, state.expected if state is not None else None)

    def move(self, event: RunEvent) -> None:
        """Go where the table says."""
        self.phase = RUN.move(self.phase, event)

    def close(self, totals: dict[str, int]) -> None:
        """Take the numbers of frames that were promised in all."""
        if self.phase is Phase.OPEN:
            self.move(RunEvent.CLOSED)
            self.totals = totals
        else:
            self.move(RunEvent.REPEATED)

    def check(self) -> bool:
        """Say whether the last promised frame has come to disk by now, which happens once."""
        if self.phase is not Phase.CLOSED or not all(
            state.books.done.covers(0, self.total(name)) for name, state in self.streams.items()
        ):
            return False
        self.move(RunEvent.DONE)
        return True

    @property
    def since(self) -> float | None:
        """When it came to where it stands, s since 1970, by its documents; None if they don't say."""
        if self.completed is not None:
            return self.completed
        return self.started if self.totals is None else self.stopped

    def report(self, now: float) -> dict[str, Any]:
        """Return how it stands, for JSON."""
        closed = self.totals is not None
        streams = {}
        for name, state in self.streams.items():
            counts = account(state.books.sets, self.total(name), closed=closed)
            del counts["intervals"]
            rates = {
                "live_per_s": state.books.live.per_second(now),
                "backfilled_per_s": state.books.backfilled.per_second(now),
                "lag_s": state.books.lag.seconds(state.books.done, now),
            }
            streams[name] = counts | rates
        return {
            "run": self.open.run,
            "processed": self.open.processed,
            "scan_id": self.scan_id,
            "phase": self.phase,
            "since": self.since,
            "closed": closed,
            "completed": self.completed,
            "abandoned": self.abandoned,
            "nexus": self.nexus,
            "duplicates": self.duplicates,
            "streams": streams,
        }


@dataclass(slots=True)
class Counters:
    """Everything that somebody may ask about."""

    results: int = 0
    frames: int = 0
    duplicates: int = 0
    bad: int = 0
    unknown: int = 0
    refused: int = 0
    gaps: int = 0
    abandoned: int = 0
    """Runs closed here, because their sessions were gone."""
    late: int = 0
    """Control messages of runs that had been closed so."""
    commits: int = 0
    errors: int = 0
    ledger_us: int = 0
    """µs of CPU that taking results, writing them to the ledger and answering took; the shell keeps it."""
    last_bad: str = ""
    last_error: str = ""


def _time(doc: dict[str, Any]) -> float | None:
    found = doc.get("time")
    return float(found) if isinstance(found, int | float) else None


def dones(key: tuple[str, str, str], frames: IntervalSet, run: RunState | None = None) -> Iterator[Done]:
    """Yield what says that ``frames`` are done, in messages of a size that travels.

    With ``run`` these are all that are done in it, and it is said how many control messages it has had.
    """
    ranges = frames.ranges()
    for start in range(0, max(len(ranges), 1), MAX_RANGES):
        part = ranges[start : start + MAX_RANGES]
        if run is not None and start + MAX_RANGES >= len(ranges):
            yield Done(*key, part, True, len(run.control), run.totals is not None)
        else:
            yield Done(*key, part)
