"""One stream as the broker sees it: which frames are in the ring, which in files, which batches can go.

A batch's life::

    open ──(every frame is here, in a file, or known to be absent)──► queued ──(a worker has credit)──► leased
     ▲                                                                                                   │
     └──────────────(NACK, or its worker is gone; the blocks in the ring stay held)───────────────────────┤
                                                                                                         ▼
                                                      forgotten, blocks freed ◄──(DONE: it is on disk)── any
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

from .intervals import IntervalSet
from .wire.messages import (
    LOST,
    QUARANTINED,
    Absent,
    Block,
    Expect,
    FileSpan,
    Frames,
    Nack,
    RingSpan,
    StreamOpen,
    Work,
)

RETRIES: Final = (1.0, 2.0, 2.0)
"""Seconds to wait after each failed read once the run is closed; then the frame is lost."""

LATE_FILE: Final = 0.5
"""Seconds between reads of a file that is late while the run is open: no count is kept of them."""

STRIKES: Final = 2
"""So many times a frame may kill a worker before it is quarantined."""

DEATHS: Final = 5
"""So many times a batch may kill a worker alone before any of its frames is named; then all of it is quarantined."""

MAX_REASONS: Final = 16
"""Reasons for drops that are counted apart."""

MARK: Final = 0.02
"""Seconds between two marks of how far the live lane has come."""


class Key(NamedTuple):
    """What names a stream; with another ``cfg`` it is another stream."""

    run: str
    stream: str
    cfg: str


class Held(NamedTuple):
    """A frame's block, and the ring it is in."""

    ring: str
    block: Block


class State(Enum):
    """Where a batch stands."""

    OPEN = "open"
    QUEUED = "queued"
    LEASED = "leased"


@dataclass(slots=True)
class Batch:
    """What is known of a batch that isn't done; most batches of a file never need one."""

    state: State = State.OPEN
    held: dict[int, Held] = field(default_factory=dict)
    spoiled: list[Held] = field(default_factory=list)
    """Blocks that are no longer read. A worker thought dead may still read them, so they are freed on DONE only."""
    absent: dict[int, Absent] = field(default_factory=dict)
    strikes: Counter[int] = field(default_factory=Counter)
    deaths: int = 0
    isolate: bool = False
    tries: int = 0
    not_before: float = 0.0

    def holds(self, frame: int, held: Held) -> bool:
        """Say whether this very block is held for the frame."""
        place = held.ring, held.block.offset
        mine = [each for each in self.spoiled if each.block.frame == frame]
        if frame in self.held:
            mine.append(self.held[frame])
        return any((each.ring, each.block.offset) == place for each in mine)

    def quarantined(self, frame: int) -> bool:
        """Say whether the frame isn't to be tried again."""
        return frame in self.absent and self.absent[frame].status == QUARANTINED


class Marks:
    """How far something had come ``delay`` seconds ago.

    >>> marks = Marks(0.5)
    >>> marks.reach(100, now=1.0)
    >>> marks.passed(1.4), marks.passed(1.5)
    (0, 100)
    """

    __slots__ = ("_delay", "_marks", "_passed", "high")

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._marks: deque[tuple[float, int]] = deque()  # bounded: one per MARK within delay
        self._passed = 0
        self.high = 0

    def reach(self, frame: int, now: float) -> None:
        """Note that ``frame`` was reached."""
        if frame <= self.high:
            return
        self.high = frame
        if self._marks and now - self._marks[-1][0] < MARK:
            self._marks[-1] = (self._marks[-1][0], frame)
        else:
            self.passed(now)
            self._marks.append((now, frame))

    def passed(self, now: float) -> int:
        """Return the frame that had been reached ``delay`` seconds ago."""
        while self._marks and self._marks[0][0] <= now - self._delay:
            self._passed = self._marks.popleft()[1]
        return self._passed


class Stream:
    """The frames of one detector in one run.

    Parameters
    ----------
    opened
        What was asked for.
    now
        Seconds of a monotonic clock, as in every method.
    late
        Seconds after a later frame came until a frame is held not to come live any more.
    quiet
        Seconds after a frame was promised until, no frame having come so far, the live lane is held to be dead.
    """

    def __init__(self, opened: StreamOpen, now: float, *, late: float = 0.5, quiet: float = 5.0) -> None:
        self.opened = opened
        self.key = Key(opened.run, opened.stream, opened.cfg)
        self.size = opened.batch
        self.total: int | None = None
        self.done = IntervalSet()
        self.expected = IntervalSet()
        self.covered = IntervalSet()
        """Promised, and every input has a file for it."""
        self.synced = False
        """The sink has said once what is done: nothing is dispatched before."""
        self.confirmed = False
        """The sink has told everything anew since the run was closed: a frame without a file now has none."""
        self.batches: dict[int, Batch] = {}
        self.dropped: Counter[str] = Counter()
        self.duplicates = 0
        self.surplus = 0
        self.held_bytes = 0
        self.queued = 0
        self.freed: list[Held] = []
        """Blocks that nobody needs any more, for the broker to take."""
        self._late = late
        self._spans: dict[str, list[FileSpan]] = {spec.key: [] for spec in opened.inputs}
        self._in_files = {spec.key: IntervalSet() for spec in opened.inputs}
        live_key = opened.live.key if opened.live else None
        self._beside = [spec.key for spec in opened.inputs if spec.key != live_key] if live_key else []
        """Inputs that come by file although the stream has a live lane."""
        self._gone = IntervalSet()
        """Dropped by the ingest: they don't come live any more."""
        self._live = Marks(late)
        self._promised = Marks(quiet)
        self._arrived = now
        self._closed = now
        self._cursor = 0

    # --- what comes in ----------------------------------------------------------------------------------------------

    def arrive(self, ring: str, block: Block, now: float) -> int | None:
        """Take a frame that came live; return its batch's number if that is complete now."""
        frame = block.frame
        held = Held(ring, block)
        self._arrived = now
        self._live.reach(frame, now)
        if self.total is not None and frame >= self.total:
            self.surplus += 1
            self.freed.append(held)
            return None
        if frame in self.done:
            self.duplicates += 1
            self.freed.append(held)
            return None
        number = frame // self.size
        batch = self.batches.setdefault(number, Batch())
        if batch.holds(frame, held):
            return None  # the ingest says again what it holds, to a broker that it thinks new
        if frame in batch.held or batch.state is State.LEASED or batch.quarantined(frame):
            self.duplicates += 1
            self.freed.append(held)
            return None
        batch.absent.pop(frame, None)  # given up for lost, and it came after all
        batch.held[frame] = held
        self.held_bytes += block.size
        whole = len(batch.held) == self.size and batch.state is State.OPEN
        return number if whole and self.ready(number, now) else None

    def misfit(self, message: Frames) -> str | None:
        """Say how streamed frames differ from what the document announced; None if they don't."""
        spec = next(
            (each for each in self.opened.inputs if self.opened.live and each.key == self.opened.live.key), None
        )
        if spec is None or (message.shape, message.dtype.lstrip("<|=")) == (spec.shape, spec.dtype.lstrip("<|=")):
            return None
        return f"came as {message.shape} {message.dtype}, announced as {spec.shape} {spec.dtype}"

    def drop(self, ranges: Sequence[tuple[int, int]], reason: str, now: float) -> None:
        """Note frames that came and were let go; those said before aren't counted again."""
        if reason not in self.dropped and len(self.dropped) >= MAX_REASONS:
            reason = "other"
        for first, stop in ranges:
            self.dropped[reason] += max(stop - first, 0) - self._gone.count(first, stop)
            self._gone.add(first, stop)
            self._live.reach(stop - 1, now)

    def expect(self, message: Expect, now: float) -> None:
        """Take what was promised, and where files have it. Said again, it changes nothing."""
        self.expected.add(message.first, message.stop)
        self._promised.reach(message.stop, now)
        low, high = message.first, message.stop
        for span in message.files:
            inside = self._in_files.get(span.key)
            if inside is None:
                continue
            for first, stop in inside.gaps(span.first, span.first + span.n):
                self._insert(
                    FileSpan(span.key, span.uri, span.dataset, first, stop - first, span.offset + first - span.first)
                )
            inside.add(span.first, span.first + span.n)
            low, high = min(low, span.first), max(high, span.first + span.n)
        self.covered.add(low, high)
        for known in (self.expected, *self._in_files.values()):
            for first, stop in known.gaps(low, high):
                self.covered.discard(first, stop)

    def close(self, total: int, now: float) -> None:
        """Take the number of frames that were promised in all; what lies beyond is freed."""
        if self.total is not None:
            return
        self.total = total
        self._closed = now
        self.confirmed = False
        for number in [each for each in self.batches if (each + 1) * self.size > total]:
            # What is leased is being read: its result is whole, and whoever reads that cuts it at the total.
            if self.batches[number].state is not State.LEASED:
                self._cut(number)

    def finish(self, ranges: Iterable[tuple[int, int]], *, full: bool) -> list[int]:
        """Take what is on disk; free its blocks and return the numbers of the batches that are done by it."""
        finished = []
        for first, stop in ranges:
            for start, end in self.done.gaps(first, stop):
                self.done.add(start, end)
                touched: Collection[int] = range(start // self.size, -(-end // self.size))
                if len(touched) > len(self.batches):  # a range of 2**39 frames must not cost as many steps
                    touched = [number for number in self.batches if number in touched]
                for number in touched:
                    if number in self.batches and self.done.covers(*self.bounds(number)):
                        self._finish(number)
                        finished.append(number)
            self._gone.discard(first, stop)
        self.synced |= full
        return finished

    # --- what can go ------------------------------------------------------------------------------------------------

    def bounds(self, number: int) -> tuple[int, int]:
        """Return ``(first, stop)`` of a batch; the last one is short."""
        first = number * self.size
        return first, first + self.size if self.total is None else max(first, min(first + self.size, self.total))

    def ready(self, number: int, now: float) -> bool:
        """Say whether a batch can go; frames that turn out to be lost are marked so."""
        first, stop = self.bounds(number)
        if first == stop or not self.synced:
            return False
        batch = self.batches.get(number)
        if batch is not None and now < batch.not_before:
            return False
        if batch is not None and len(batch.held) == stop - first and not self._beside:
            return True
        settled = self._settled(now)
        if self.covered.covers(first, stop) and (settled or stop <= self._given_up(now)):
            return True
        return all(self._ready_frame(number, frame, settled, now) for frame in range(first, stop))

    def scan(self, now: float, room: int, steps: int = 512) -> Iterator[int]:
        """Yield the batches that can go and aren't queued.

        Of those that come from files alone at most ``room``, and no more than ``steps`` are looked at: the next scan
        goes on from there. So a document that promises a million frames costs no more at once than one of ten.
        """
        if not self.synced:
            return
        partly = [n for n, batch in self.batches.items() if batch.held and batch.state is State.OPEN]
        yield from (number for number in sorted(partly) if self.ready(number, now))
        end = self.total if self.total is not None else max(self.covered.end, self._live.high + 1)
        if self._cursor * self.size >= end:
            self._cursor = 0
        for first, stop in self.done.gaps(self._cursor * self.size, end):
            for number in range(first // self.size, -(-stop // self.size)):
                if room <= 0 or steps <= 0:
                    self._cursor = number
                    return
                steps -= 1
                batch = self.batches.get(number)
                untouched = batch is None or (batch.state is State.OPEN and not batch.held)
                if untouched and self.ready(number, now):
                    room -= 1
                    yield number
        self._cursor = 0

    def queue(self, number: int) -> bool:
        """Mark a batch as queued; return whether any of it is in a ring."""
        batch = self.batches.setdefault(number, Batch())
        batch.state = State.QUEUED
        self.queued += 1
        return bool(batch.held)

    def work(self, number: int, token: int) -> Work | None:
        """Return the batch as work and mark it leased; None if it isn't queued (any more)."""
        batch = self.batches.get(number)
        if batch is None or batch.state is not State.QUEUED:
            return None
        self.queued -= 1
        batch.state = State.LEASED
        first, stop = self.bounds(number)
        rings: dict[str, list[Block]] = {}
        for frame in sorted(batch.held):
            if frame not in batch.absent:
                rings.setdefault(batch.held[frame].ring, []).append(batch.held[frame].block)
        wanted = [frame for frame in range(first, stop) if frame not in batch.held and frame not in batch.absent]
        files = []
        for key in self._spans:
            if key in self._beside:
                files += self._spans_of(key, first, stop)
            elif wanted:
                files += self._spans_of(key, wanted[0], wanted[-1] + 1)
        return Work(
            *self.key[:2],
            self.key.cfg,
            first,
            stop - first,
            token,
            [RingSpan(ring, blocks) for ring, blocks in rings.items()],
            files,
            [batch.absent[frame] for frame in sorted(batch.absent) if first <= frame < stop],
            batch.isolate,
        )

    # --- what comes back --------------------------------------------------------------------------------------------

    def give_back(self, number: int, *, suspect: bool = False) -> None:
        """Open a leased batch again: its worker is gone. ``suspect``: it was being executed then."""
        batch = self.batches.get(number)
        if batch is not None and batch.state is State.LEASED:
            batch.state = State.OPEN
            batch.isolate |= suspect
            self._cut(number)

    def refuse(self, number: int, nack: Nack, now: float) -> None:
        """Open a leased batch again: its worker couldn't do it."""
        self.give_back(number)
        batch = self.batches.get(number)
        if batch is None:
            return
        first, stop = self.bounds(number)
        if nack.retryable:
            self._unreadable(batch, [f for f in nack.missing if first <= f < stop], range(first, stop), nack, now)
            return
        if first <= nack.frame < stop:
            batch.strikes[nack.frame] += 1
            if batch.strikes[nack.frame] >= STRIKES:
                self._give_up(batch, nack.frame, QUARANTINED, nack.reason)
        elif batch.isolate:
            batch.deaths += 1
            if batch.deaths >= DEATHS:
                for frame in range(first, stop):
                    self._give_up(batch, frame, QUARANTINED, nack.reason)
        batch.isolate = True

    def _unreadable(self, batch: Batch, missing: list[int], frames: range, nack: Nack, now: float) -> None:
        in_ring = [frame for frame in missing or frames if frame in batch.held]
        for frame in in_ring:  # its ring is gone; the file may have it
            self._spoil(batch, frame)
        if in_ring:
            return
        if not self._settled(now) or not self.confirmed:
            batch.not_before = now + LATE_FILE
        elif batch.tries < len(RETRIES):
            batch.not_before = now + RETRIES[batch.tries]
            batch.tries += 1
        else:
            for frame in missing or frames:
                self._give_up(batch, frame, LOST, nack.reason)

    # --- accounts ---------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether every frame that was promised is on disk."""
        return self.total is not None and self.synced and self.done.covers(0, self.total)

    def release(self) -> None:
        """Free every block: the stream is forgotten."""
        for number in list(self.batches):
            self._finish(number)

    def summary(self) -> dict[str, object]:
        """Return the stream's numbers."""
        leased = sum(batch.state is State.LEASED for batch in self.batches.values())
        return {
            "total": self.total,
            "expected": len(self.expected),
            "done": len(self.done) if self.total is None else self.done.count(0, self.total),
            "held": sum(len(batch.held) for batch in self.batches.values()),
            "held_bytes": self.held_bytes,
            "owed": self._owed(),
            "queued": self.queued,
            "leased": leased,
            "dropped": dict(self.dropped),
            "duplicates": self.duplicates,
            "surplus": self.surplus,
            "live": self.opened.live is not None,
            "complete": self.complete,
        }

    def _owed(self) -> int:
        end = self.total if self.total is not None else max(self.expected.end, self._live.high)
        held = sum(frame < end for batch in self.batches.values() for frame in batch.held if frame not in self.done)
        return max(end - self.done.count(0, end) - held, 0)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _settled(self, now: float) -> bool:
        """Whether nothing comes live any more."""
        if self.opened.live is None:
            return True
        return self.total is not None and now >= max(self._closed, self._arrived) + self._late

    def _given_up(self, now: float) -> int:
        """Return the frame below which none comes live any more."""
        passed, promised = self._live.passed(now), self._promised.passed(now)
        return max(passed, promised)

    def _ready_frame(self, number: int, frame: int, settled: bool, now: float) -> bool:
        batch = self.batches.get(number)
        if batch is not None and frame in batch.absent:
            return True
        held = batch is not None and frame in batch.held
        lacking = [key for key in (self._beside if held else self._spans) if frame not in self._in_files[key]]
        if held and not lacking:
            return True
        if not lacking:
            return settled or (frame in self.expected and (frame < self._given_up(now) or frame in self._gone))
        if not (settled and self.confirmed):
            return False
        why = "the file lane was its only one" if self.opened.live is None else "it didn't come live"
        why = "it came live" if held else why
        reason = f"{why}, and no file was announced that has {', '.join(lacking)}"
        self._give_up(self.batches.setdefault(number, Batch()), frame, LOST, reason[:500])
        return True

    def _give_up(self, batch: Batch, frame: int, status: int, reason: str) -> None:
        batch.absent.setdefault(frame, Absent(frame, status, reason))
        if frame in batch.held:
            self._spoil(batch, frame)

    def _spoil(self, batch: Batch, frame: int) -> None:
        held = batch.held.pop(frame)
        self.held_bytes -= held.block.size
        batch.spoiled.append(held)

    def _cut(self, number: int) -> None:
        """Let the frames beyond the total go."""
        if self.total is None:
            return
        batch = self.batches[number]
        for frame in [each for each in batch.held if each >= self.total]:
            self.surplus += 1
            self._spoil(batch, frame)
        if number * self.size >= self.total:
            self._finish(number)

    def _finish(self, number: int) -> None:
        batch = self.batches.pop(number)
        self.queued -= batch.state is State.QUEUED
        self.held_bytes -= sum(held.block.size for held in batch.held.values())
        self.freed += batch.held.values()
        self.freed += batch.spoiled

    def _insert(self, span: FileSpan) -> None:
        """Keep a span; one that goes on where the one before ends is joined to it."""
        spans = self._spans[span.key]
        at = bisect_right(spans, span.first, key=lambda each: each.first)
        if at:
            last = spans[at - 1]
            same = (last.uri, last.dataset) == (span.uri, span.dataset)
            if same and last.first + last.n == span.first and last.offset + last.n == span.offset:
                spans[at - 1] = FileSpan(last.key, last.uri, last.dataset, last.first, last.n + span.n, last.offset)
                return
        spans.insert(at, span)

    def _spans_of(self, key: str, first: int, stop: int) -> list[FileSpan]:
        """Return the spans that have frames of ``[first, stop)``, cut to it."""
        spans = self._spans[key]
        found = []
        for at in range(max(bisect_right(spans, first, key=lambda each: each.first) - 1, 0), len(spans)):
            span = spans[at]
            if span.first >= stop:
                break
            low, high = max(first, span.first), min(stop, span.first + span.n)
            if low < high:
                found.append(FileSpan(key, span.uri, span.dataset, low, high - low, span.offset + low - span.first))
        return found
