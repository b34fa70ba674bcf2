"""The sink's books: what is expected and what is done, per run and stream, as far as the ledger has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from .intervals import IntervalSet
from .ledger_rows import Control, account, mark, stream_total
from .reducers.base import Output
from .wire.messages import STATUS_NAMES, Done, RunOpen, StreamOpen

MAX_RANGES: Final = 2000
"""Ranges in one DONE."""

Outputs = dict[str, dict[str, Output]]


@dataclass(slots=True)
class Books:
    """What became of the frames of one (run, stream, cfg)."""

    sets: tuple[IntervalSet, ...] = field(default_factory=lambda: tuple(IntervalSet() for _ in STATUS_NAMES))
    done: IntervalSet = field(default_factory=IntervalSet)
    buffered: set[int] = field(default_factory=set)

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


@dataclass(slots=True)
class RunState:
    """A run as far as the ledger has it."""

    open: RunOpen
    control: list[Control] = field(default_factory=list)
    streams: dict[str, StreamState] = field(default_factory=dict)
    totals: dict[str, int] | None = None
    duplicates: int = 0
    finishing: bool = False
    completed: float | None = None
    nexus: str | None = None

    def total(self, stream: str) -> int:
        """Return how many frames the stream has, as far as is known."""
        state = self.streams.get(stream)
        return stream_total(self.totals, stream, state.expected if state is not None else None)

    @property
    def finished(self) -> bool:
        """Whether the run was closed and every promised frame is on disk."""
        return self.totals is not None and all(
            state.books.done.covers(0, self.total(name)) for name, state in self.streams.items()
        )

    def report(self) -> dict[str, Any]:
        """Return how it stands, for JSON."""
        closed = self.totals is not None
        streams = {}
        for name, state in self.streams.items():
            counts = account(state.books.sets, self.total(name), closed=closed)
            del counts["intervals"]
            streams[name] = counts
        return {
            "run": self.open.run,
            "processed": self.open.processed,
            "closed": closed,
            "completed": self.completed,
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
    commits: int = 0
    errors: int = 0
    ledger_us: int = 0
    """µs of CPU that taking results, writing them to the ledger and answering took; the shell keeps it."""
    last_bad: str = ""
    last_error: str = ""


def dones(key: tuple[str, str, str], frames: IntervalSet, *, full: bool = False, controls: int = 0) -> Iterator[Done]:
    """Yield what says that ``frames`` are done, in messages of a size that travels."""
    ranges = frames.ranges()
    for start in range(0, max(len(ranges), 1), MAX_RANGES):
        part = ranges[start : start + MAX_RANGES]
        whole = full and start + MAX_RANGES >= len(ranges)
        yield Done(*key, part, whole, controls if whole else 0)
