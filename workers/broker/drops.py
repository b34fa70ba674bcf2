"""When the sink is told how many frames were dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from ..wire.messages import Drops
from .batch import Key
from .stream import Stream

AGAIN: Final = 5.0
"""Seconds until the sink is told again: the word may have been lost."""

MAX_CAUSE: Final = 100
"""Letters of a cause."""


class DropReports:
    """What the sink was told of each stream's drops: it is told of more of them, and now and then again."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._told: dict[Key, tuple[int, float]] = {}
        """How many, and when."""

    def due(self, streams: Iterable[Stream], now: float) -> list[Drops]:
        """Return what is to be told now."""
        reports = []
        for stream in streams:
            count, at = self._told.get(stream.key, (0, float("-inf")))
            total = stream.lane.dropped.total()
            if total and not stream.complete and (total != count or now - at >= AGAIN):
                self._told[stream.key] = total, now
                reports.append(self._report(stream))
        return reports

    def repeat(self) -> None:
        """Have everything told again: the sink may be another, that knows only what was committed."""
        self._told.clear()

    def forget(self, stream: Key) -> None:
        """Let go of a stream."""
        self._told.pop(stream, None)

    def _report(self, stream: Stream) -> Drops:
        # Of one stream the causes are few; cut, two may be the same.
        causes: Counter[str] = Counter()
        for cause, frames in stream.lane.dropped.items():
            causes[cause[:MAX_CAUSE]] += frames
        told = [(cause, min(frames, 2**40 - 1)) for cause, frames in causes.items()]
        return Drops(stream.key.run, stream.key.stream, self._epoch, told)
