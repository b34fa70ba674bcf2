"""Which frames of a stream were promised, and in which file each data key has them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from .intervals import IntervalSet
from .wire.messages import Expect, FileSpan


class FileMap:
    """What the EXPECTs of a stream have said so far.

    >>> files = FileMap(["image"])
    >>> files.expect(Expect(1, "run", "eiger", 0, 4, [FileSpan("image", "file:///a", "data", 0, 3, 0)]))
    >>> files.expected, files.covered, files.lacking(3)
    (IntervalSet([(0, 4)]), IntervalSet([(0, 3)]), ['image'])
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self.expected = IntervalSet()
        self.covered = IntervalSet()
        """Promised, and every key has a file for it."""
        self._spans: dict[str, list[FileSpan]] = {key: [] for key in keys}
        self._inside = {key: IntervalSet() for key in self._spans}

    @property
    def keys(self) -> list[str]:
        """The data keys that files are wanted for."""
        return list(self._spans)

    def expect(self, message: Expect) -> None:
        """Take what was promised, and where files have it. Said again, it changes nothing."""
        self.expected.add(message.first, message.stop)
        low, high = message.first, message.stop
        for span in message.files:
            inside = self._inside.get(span.key)
            if inside is None:
                continue
            for first, stop in inside.gaps(span.first, span.first + span.n):
                self._insert(_cut(span, first, stop))
            inside.add(span.first, span.first + span.n)
            low, high = min(low, span.first), max(high, span.first + span.n)
        self.covered.add(low, high)
        for known in (self.expected, *self._inside.values()):
            for first, stop in known.gaps(low, high):
                self.covered.discard(first, stop)

    def lacking(self, frame: int, keys: Iterable[str] | None = None) -> list[str]:
        """Return those of ``keys`` (of all) that no file has the frame for."""
        return [key for key in (self._spans if keys is None else keys) if frame not in self._inside[key]]

    def spans(self, key: str, first: int, stop: int) -> list[FileSpan]:
        """Return where frames ``[first, stop)`` of a key are, cut to these."""
        spans = self._spans[key]
        found = []
        for at in range(max(bisect_right(spans, first, key=_first) - 1, 0), len(spans)):
            span = spans[at]
            if span.first >= stop:
                break
            low, high = max(first, span.first), min(stop, span.first + span.n)
            if low < high:
                found.append(_cut(span, low, high))
        return found

    def _insert(self, span: FileSpan) -> None:
        """Keep a span; one that goes on where the one before ends is joined to it."""
        spans = self._spans[span.key]
        at = bisect_right(spans, span.first, key=_first)
        if at:
            last = spans[at - 1]
            same = (last.uri, last.dataset) == (span.uri, span.dataset)
            if same and last.first + last.n == span.first and last.offset + last.n == span.offset:
                spans[at - 1] = FileSpan(last.key, last.uri, last.dataset, last.first, last.n + span.n, last.offset)
                return
        spans.insert(at, span)


def _first(span: FileSpan) -> int:
    return span.first


def _cut(span: FileSpan, first: int, stop: int) -> FileSpan:
    return FileSpan(span.key, span.uri, span.dataset, first, stop - first, span.offset + first - span.first)
