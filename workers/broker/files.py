"""Which frames of a stream were promised, and in which file each data key has them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from ..intervals import IntervalSet
from ..wire.messages import Expect, FileSpan


class Spans:
    """Where frames of one data key lie; of a frame that is named twice the first word stands."""

    def __init__(self) -> None:
        self.frames = IntervalSet()
        self._spans: list[FileSpan] = []

    def add(self, span: FileSpan) -> None:
        """Take a span, as far as it is new."""
        for first, stop in self.frames.gaps(span.first, span.first + span.n):
            self._insert(_cut(span, first, stop))
        self.frames.add(span.first, span.first + span.n)

    def within(self, first: int, stop: int) -> list[FileSpan]:
        """Return where frames ``[first, stop)`` are, cut to these."""
        found = []
        for at in range(max(bisect_right(self._spans, first, key=_first) - 1, 0), len(self._spans)):
            span = self._spans[at]
            if span.first >= stop:
                break
            low, high = max(first, span.first), min(stop, span.first + span.n)
            if low < high:
                found.append(_cut(span, low, high))
        return found

    def _insert(self, span: FileSpan) -> None:
        """Keep a span; one that goes on where the one before ends is joined to it."""
        spans = self._spans
        at = bisect_right(spans, span.first, key=_first)
        if at:
            last = spans[at - 1]
            same = (last.uri, last.dataset) == (span.uri, span.dataset)
            if same and last.first + last.n == span.first and last.offset + last.n == span.offset:
                spans[at - 1] = FileSpan(last.key, last.uri, last.dataset, last.first, last.n + span.n, last.offset)
                return
        spans.insert(at, span)


class FileMap:
    """What the EXPECTs of a stream have said so far, and where its spilled frames lie.

    >>> files = FileMap(["image"])
    >>> files.expect(Expect(1, "run", "eiger", 0, 4, [FileSpan("image", "file:///a", "data", 0, 3, 0)]))
    >>> files.expected, files.covered, files.lacking(3)
    (IntervalSet([(0, 4)]), IntervalSet([(0, 3)]), ['image'])
    >>> files.spill([FileSpan("image", "file:///spilled", "data", 2, 2, 0)])
    >>> files.covered, [span.uri for span in files.spans("image", 2, 4)]
    (IntervalSet([(0, 4)]), ['file:///a', 'file:///spilled'])
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self.expected = IntervalSet()
        self.covered = IntervalSet()
        """Promised, and every key has a file for it."""
        self._announced = {key: Spans() for key in keys}
        self._spilled = {key: Spans() for key in self._announced}
        """In files of the pool's own: of use where the detector's have none."""

    @property
    def keys(self) -> list[str]:
        """The data keys that files are wanted for."""
        return list(self._announced)

    def expect(self, message: Expect) -> None:
        """Take what was promised, and where files have it. Said again, it changes nothing."""
        self.expected.add(message.first, message.stop)
        self._add(self._announced, message.files, message.first, message.stop)

    def spill(self, files: Iterable[FileSpan]) -> None:
        """Take where frames lie in files of the pool's own. Said again, it changes nothing."""
        self._add(self._spilled, files, 2**40, 0)

    def has_spilled(self, span: FileSpan) -> bool:
        """Say whether all of these frames are known to have been spilled."""
        known = self._spilled.get(span.key)
        return known is not None and known.frames.covers(span.first, span.first + span.n)

    def lacking(self, frame: int, keys: Iterable[str] | None = None) -> list[str]:
        """Return those of ``keys`` (of all) that no file has the frame for."""
        return [
            key
            for key in (self._announced if keys is None else keys)
            if frame not in self._announced[key].frames and frame not in self._spilled[key].frames
        ]

    def spans(self, key: str, first: int, stop: int) -> list[FileSpan]:
        """Return where frames ``[first, stop)`` of a key are, cut to these."""
        announced = self._announced[key]
        found = announced.within(first, stop)
        for low, high in announced.frames.gaps(first, stop):
            found += self._spilled[key].within(low, high)
        return found

    def _add(self, known: dict[str, Spans], files: Iterable[FileSpan], low: int, high: int) -> None:
        for span in files:
            if span.key in known:
                known[span.key].add(span)
                low, high = min(low, span.first), max(high, span.first + span.n)
        self.covered.add(low, high)
        for first, stop in self.expected.gaps(low, high):
            self.covered.discard(first, stop)
        for key, announced in self._announced.items():
            for start, end in announced.frames.gaps(low, high):
                for first, stop in self._spilled[key].frames.gaps(start, end):
                    self.covered.discard(first, stop)


def _first(span: FileSpan) -> int:
    return span.first


def _cut(span: FileSpan, first: int, stop: int) -> FileSpan:
    return FileSpan(span.key, span.uri, span.dataset, first, stop - first, span.offset + first - span.first)
