"""How fast frames come to disk, and how far behind their promise they are; no clock."""

from __future__ import annotations

from collections import deque
from typing import Final

from ..intervals import IntervalSet

SPAN: Final = 5.0
"""Seconds over which a rate is averaged."""

STEP: Final = 0.25
"""Seconds within which what happens is taken as one."""

MAX_PROMISES: Final = 1000


class Rate:
    """Counts over the last seconds.

    >>> rate = Rate()
    >>> rate.add(100, now=1.0)
    >>> rate.per_second(2.0), rate.per_second(7.0)
    (20.0, 0.0)
    """

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()  # bounded: one per STEP within SPAN

    def add(self, n: int, now: float) -> None:
        """Count ``n`` more."""
        if self._counts and now - self._counts[-1][0] < STEP:
            self._counts[-1] = (self._counts[-1][0], self._counts[-1][1] + n)
        elif n:
            self._drop(now)
            self._counts.append((now, n))

    def per_second(self, now: float) -> float:
        """Return the average over the last :data:`SPAN` seconds."""
        self._drop(now)
        return round(sum(n for _, n in self._counts) / SPAN, 2)

    def _drop(self, now: float) -> None:
        while self._counts and self._counts[0][0] <= now - SPAN:
            self._counts.popleft()


class Lag:
    """When frames were promised, of those that aren't done.

    >>> lag, done = Lag(), IntervalSet()
    >>> lag.promise(10, now=1.0)
    >>> lag.promise(20, now=2.0)
    >>> lag.seconds(done, 5.0)
    4.0
    >>> done.add(0, 10)
    >>> lag.seconds(done, 5.0)
    3.0
    """

    __slots__ = ("_promised",)

    def __init__(self) -> None:
        self._promised: deque[tuple[float, int]] = deque()

    def promise(self, stop: int, now: float) -> None:
        """Note that frames below ``stop`` were promised."""
        if self._promised and (now - self._promised[-1][0] < STEP or len(self._promised) >= MAX_PROMISES):
            self._promised[-1] = (self._promised[-1][0], max(stop, self._promised[-1][1]))
        else:
            self._promised.append((now, stop))

    def seconds(self, done: IntervalSet, now: float) -> float:
        """Return for how long the oldest promise has stood that isn't kept; 0 if all are."""
        while self._promised and done.covers(0, self._promised[0][1]):
            self._promised.popleft()
        return round(now - self._promised[0][0], 2) if self._promised else 0.0
