"""Sets of frame numbers, kept as sorted disjoint half-open ranges: the unit of account for what is done."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class IntervalSet:
    """Integers as ranges ``[first, stop)``, sorted, disjoint, never touching.

    Each change costs a bisection and a slice, whatever the ranges' lengths: a range of 2**39 frames is as cheap as
    one of 2.

    >>> done = IntervalSet([(0, 4), (8, 12)])
    >>> done.add(4, 6)
    >>> done
    IntervalSet([(0, 6), (8, 12)])
    >>> 5 in done, 6 in done, len(done)
    (True, False, 10)
    >>> done.gaps(0, 14)
    [(6, 8), (12, 14)]
    """

    __slots__ = ("_starts", "_stops")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self.update(ranges)

    def add(self, first: int, stop: int) -> None:
        """Put ``[first, stop)`` in; an empty or inverted range changes nothing."""
        if stop <= first:
            return
        low = bisect_left(self._stops, first)  # ranges that only touch merge too
        high = bisect_right(self._starts, stop)
        if low < high:
            first = min(first, self._starts[low])
            stop = max(stop, self._stops[high - 1])
        self._starts[low:high] = [first]
        self._stops[low:high] = [stop]

    def update(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Put every range in."""
        for first, stop in ranges:
            self.add(first, stop)

    def discard(self, first: int, stop: int) -> None:
        """Take ``[first, stop)`` out, as far as it is in."""
        if stop <= first:
            return
        low = bisect_right(self._stops, first)
        high = bisect_left(self._starts, stop)
        if low >= high:
            return
        left = [(self._starts[low], first)] if self._starts[low] < first else []
        right = [(stop, self._stops[high - 1])] if self._stops[high - 1] > stop else []
        self._starts[low:high] = [start for start, _ in left + right]
        self._stops[low:high] = [end for _, end in left + right]

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._starts, number) - 1
        return at >= 0 and number < self._stops[at]

    def covers(self, first: int, stop: int) -> bool:
        """Say whether all of ``[first, stop)`` is in; an empty range always is."""
        if stop <= first:
            return True
        at = bisect_right(self._starts, first) - 1
        return at >= 0 and stop <= self._stops[at]

    def gaps(self, first: int, stop: int) -> list[tuple[int, int]]:
        """Return the ranges within ``[first, stop)`` that are not in, ascending."""
        found = []
        at = bisect_right(self._stops, first)
        while first < stop:
            if at == len(self._starts) or self._starts[at] >= stop:
                found.append((first, stop))
                break
            if first < self._starts[at]:
                found.append((first, self._starts[at]))
            first = self._stops[at]
            at += 1
        return found

    def count(self, first: int, stop: int) -> int:
        """Return how many of ``[first, stop)`` are in."""
        return max(stop - first, 0) - sum(end - start for start, end in self.gaps(first, stop))

    def ranges(self) -> list[tuple[int, int]]:
        """Return the ranges, ascending."""
        return list(zip(self._starts, self._stops, strict=True))

    @property
    def end(self) -> int:
        """One past the greatest number in it; 0 when empty."""
        return self._stops[-1] if self._stops else 0

    def __len__(self) -> int:
        return sum(self._stops) - sum(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalSet) and self.ranges() == other.ranges()

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"IntervalSet({self.ranges()})"
