"""The live lane of a stream: how far it has come, and which frames will not come by it any more."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from math import inf
from typing import Final

from ..intervals import IntervalSet

MAX_REASONS: Final = 16
"""Reasons for drops that are counted apart."""

SPILLING: Final = "spilling"
"""The reason of what isn't dropped: it is on its way to a file of the pool's."""

PATIENCE: Final = 30.0
"""Seconds that an ingest which may have spilled frames is waited for."""

MARK: Final = 0.02
"""Seconds between two marks of how far the lane has come."""


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


class Lane:
    """What comes live.

    Parameters
    ----------
    exists
        Whether the stream has a live lane at all.
    now
        Seconds of a monotonic clock, as in every method.
    late
        Seconds after a later frame came until a frame is held not to come any more.
    quiet
        Seconds after a frame was promised until, no frame having come so far, the lane is held to be dead.
    spills
        Whether ingests write to files what finds no room. No frame is given up while one may still say that it has it.
    """

    def __init__(self, now: float, *, exists: bool, late: float, quiet: float, spills: bool = False) -> None:
        self.exists = exists
        self.dropped: Counter[str] = Counter()
        """Frames that were seen to be let go, by cause; of what others dropped unseen nobody knows."""
        self._late = late
        self._came = Marks(late)
        self._promised = Marks(quiet)
        self._gone = IntervalSet()
        self._why: dict[str, IntervalSet] = {}
        self._last = now
        self._closed: float | None = None
        self._spilled = IntervalSet()
        self._spilling: dict[str, IntervalSet] = {}
        self._said: dict[str, float] = {}
        """When an ingest last said that it writes frames to a file: that it can't may have been lost on the way."""
        self._spills = spills
        self._doubted = now
        """When an ingest was last known to have spilled what the ledger doesn't know, or may have been."""
        self._sure = -inf
        """When an ingest last said that there is nothing of that kind."""

    @property
    def high(self) -> int:
        """The last frame that came, or that was dropped."""
        return self._came.high

    @property
    def spilled(self) -> int:
        """How many frames are in files of the pool's, however often that was said."""
        return len(self._spilled)

    def came(self, frame: int, now: float) -> None:
        """Note a frame that came."""
        self._last = now
        self._came.reach(frame, now)

    def drop(self, ranges: Sequence[tuple[int, int]], reason: str, now: float) -> None:
        """Note frames that came and were let go; those said before aren't counted again."""
        if reason not in self.dropped and len(self.dropped) >= MAX_REASONS:
            reason = "other"
        frames = self._why.setdefault(reason, IntervalSet())
        for first, stop in ranges:
            for start, end in self._gone.gaps(first, stop):
                self.dropped[reason] += end - start
                frames.add(start, end)
            self._gone.add(first, stop)
            self._written(first, stop)
            self.came(stop - 1, now)

    def spilling(self, ingest: str, ranges: Sequence[tuple[int, int]], now: float) -> None:
        """Note frames that an ingest is writing to a file; it says so again while it does."""
        self._said[ingest] = now
        for first, stop in ranges:
            for start, end in self._gone.gaps(first, stop):  # said late, it is over
                self._spilling.setdefault(ingest, IntervalSet()).add(start, end)
            self.came(stop - 1, now)

    def spill(self, first: int, stop: int, now: float) -> None:
        """Note frames that are in a file of the pool's; said again it is no sign that anything comes."""
        if self._spilled.covers(first, stop):
            return
        self._spilled.add(first, stop)
        self._gone.add(first, stop)
        self._written(first, stop)
        self.came(stop - 1, now)

    def doubt(self, ingest: str, now: float) -> None:
        """Note that an ingest is gone or began anew: what it had in hand it says again, or its successor finds it."""
        for name in (ingest, ""):  # of what was said before the stream was known nobody noted who said it
            for first, stop in self._spilling.pop(name, IntervalSet()).ranges():
                self._why.setdefault("it was being spilled when its ingest ended", IntervalSet()).add(first, stop)
        self._doubted = now

    def gauge(self, told: bool, now: float) -> None:
        """Note whether all that an ingest has spilled is known to the ledger, as it says."""
        if told:
            self._sure = now
        else:
            self._doubted = now

    def may_be_spilled(self, frame: int, now: float) -> bool:
        """Say whether an ingest may still say that it has written the frame to a file.

        What it says of single frames may be lost; so when nothing more comes it has to say that it has nothing left.
        """
        if any(frame in frames and now - self._said[name] < PATIENCE for name, frames in self._spilling.items()):
            return True
        if not self._spills:
            return False
        since = self._doubted
        if self.exists and self._closed is not None:  # and so late that it had the last frame when it said so
            since = max(since, max(self._closed, self._last) + 2 * self._late)
        return self._sure < since and now - since < PATIENCE

    def _written(self, first: int, stop: int) -> None:
        for frames in self._spilling.values():
            frames.discard(first, stop)

    def promise(self, stop: int, now: float) -> None:
        """Note that frames below ``stop`` were promised: so they were taken."""
        self._promised.reach(stop, now)

    def done(self, first: int, stop: int) -> None:
        """Forget what was dropped and is done."""
        for frames in (self._gone, *self._why.values()):
            frames.discard(first, stop)

    def why(self, frame: int) -> str | None:
        """Return why a frame was let go, None if it wasn't, as far as is known here."""
        return next((reason for reason, frames in self._why.items() if frame in frames), None)

    def close(self, now: float) -> None:
        """Note that the run has ended: the last frames may still be on their way."""
        self._closed = now

    def end(self) -> None:
        """Note that the lane is no more: the run has ended, and is reduced from its files."""
        self.exists = False

    def settled(self, now: float) -> bool:
        """Say whether nothing comes any more."""
        if not self.exists:
            return True
        return self._closed is not None and now >= max(self._closed, self._last) + self._late

    def gone_below(self, now: float) -> int:
        """Return the frame below which none comes any more, except out of order and late."""
        return max(self._came.passed(now), self._promised.passed(now))

    def gone(self, frame: int, now: float) -> bool:
        """Say whether the frame doesn't come any more."""
        return frame < self.gone_below(now) or frame in self._gone or self.settled(now)
