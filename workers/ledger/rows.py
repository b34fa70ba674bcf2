"""What the ledger holds, as its writer and its readers pass it on: rows, groups of them, and what they add up to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..intervals import IntervalSet
from ..wire.messages import STATUS_NAMES, ArraySpec, Expect, RunClose, RunOpen, Spilled, StreamOpen

Buffer = bytes | bytearray | memoryview
Control = RunOpen | StreamOpen | Expect | RunClose | Spilled


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One batch as it stands in the ledger. ``seq`` grows with every commit; ``payload`` holds what ``arrays`` says.

    ``status`` : n bytes, one of LIVE, BACKFILLED, QUARANTINED, LOST per frame.
    ``reasons`` : (frame, why) of the frames that are neither live nor backfilled.
    ``arrays`` : nav and acc only; const outputs are kept once, see :meth:`~.reader.LedgerReader.consts`.
    """

    run: str
    stream: str
    cfg: str
    first: int
    n: int
    status: bytes
    reasons: list[tuple[int, str]]
    token: int
    worker: str
    arrays: list[ArraySpec]
    payload: Buffer
    committed_at: float = 0.0
    seq: int = 0

    @property
    def key(self) -> tuple[str, str, str, int]:
        """The batch's identity."""
        return self.run, self.stream, self.cfg, self.first


@dataclass(frozen=True, slots=True)
class ConstRow:
    """One const output: the same for the whole run. ``spec.offset`` is 0."""

    run: str
    stream: str
    cfg: str
    spec: ArraySpec
    payload: Buffer


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run. ``totals`` is None until it was closed, ``completed`` (s since 1970) until every frame is done."""

    run: str
    processed: str
    start: dict[str, Any]
    opened_at: float
    totals: dict[str, int] | None
    exit_status: str | None
    stop: dict[str, Any] | None
    completed: float | None
    nexus: str | None
    nexus_error: str | None
    duplicates: int

    @property
    def raw(self) -> str:
        """The raw run's uid; ``run`` is another if this isn't its first reduction."""
        return str(self.start.get("uid", self.run))


@dataclass(slots=True)
class Group:
    """What is committed at once. ``sessions`` : the last serial of each dispatcher's session in it."""

    control: list[tuple[Control, str | None]] = field(default_factory=list)
    """Each with the path of the run's NeXus file, which only a RunOpen has."""
    batches: list[BatchRow] = field(default_factory=list)
    consts: list[ConstRow] = field(default_factory=list)
    sessions: dict[int, int] = field(default_factory=dict)
    tellers: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Per run that is opened: the session that tells of it, and its name."""
    duplicates: dict[str, int] = field(default_factory=dict)
    """Per run: results that were seen to be duplicates before they came here."""
    drops: dict[tuple[str, str], tuple[int, list[tuple[str, int]]]] = field(default_factory=dict)
    """Per run and stream: the epoch of the broker that saw frames being dropped, and how many by cause. These alone are
    no reason to commit."""

    def name_files(self, name: Callable[[RunOpen], str | None]) -> None:
        """Give each run that opens, and has none yet, the path of its NeXus file."""
        self.control = [
            (message, name(message) if path is None and isinstance(message, RunOpen) else path)
            for message, path in self.control
        ]

    def __bool__(self) -> bool:
        return bool(self.control or self.batches or self.sessions or self.duplicates)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a commit did: ``fresh[i]`` says whether ``group.control[i]`` was new, ``new[i]`` the same of batches."""

    fresh: list[bool]
    new: list[bool]


def mark(sets: tuple[IntervalSet, ...], first: int, status: bytes) -> None:
    """Add a batch's frames to the sets of their statuses."""
    start = 0
    for stop in range(1, len(status) + 1):
        if stop == len(status) or status[stop] != status[start]:
            sets[status[start]].add(first + start, first + stop)
            start = stop


def stream_total(totals: dict[str, int] | None, stream: str, expected: IntervalSet | None) -> int:
    """Return how many frames of a stream there are: as the run's close said, else as far as documents promised."""
    if totals is not None and stream in totals:
        return totals[stream]
    ranges = expected.ranges() if expected is not None else []
    return ranges[-1][1] if ranges else 0


def account(sets: tuple[IntervalSet, ...], total: int, *, closed: bool) -> dict[str, Any]:
    """Return counts and intervals of each status; of a closed run only below ``total``."""
    intervals = {
        name: [[a, min(b, total) if closed else b] for a, b in each.ranges() if not closed or a < total]
        for name, each in zip(STATUS_NAMES, sets, strict=True)
    }
    counts = {name: sum(b - a for a, b in ranges) for name, ranges in intervals.items()}
    return {"expected": total, **counts, "intervals": intervals}
