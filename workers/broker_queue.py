"""Which batch goes next: those in the ring first, because it is small; those in files too, because it is long."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Final

from .broker_batch import Key

FILES_QUEUED: Final = 32
"""Batches of one stream that wait to be read from files; more are found when there is room."""

LIVE_IN_A_ROW: Final = 3
"""After so many live batches one from files gets its turn, so that a backfill goes on during a long run."""


class Queue:
    """Two queues, and whose turn it is. An entry may be stale: who takes it looks whether its batch still waits."""

    def __init__(self) -> None:
        self._live: deque[tuple[Key, int]] = deque()
        self._files: deque[tuple[Key, int]] = deque()
        self._waiting: Counter[Key] = Counter()
        self._in_a_row = 0

    def __bool__(self) -> bool:
        return bool(self._live or self._files)

    def __len__(self) -> int:
        return len(self._live) + len(self._files)

    def __iter__(self) -> Iterator[tuple[Key, int]]:
        return iter((*self._live, *self._files))

    @property
    def live(self) -> int:
        """How many batches wait of which any frame is in a ring."""
        return len(self._live)

    def room(self, key: Key) -> int:
        """Return how many more of a stream's batches may wait to be read from files."""
        return FILES_QUEUED - self._waiting[key]

    def put(self, key: Key, number: int, *, live: bool, first: bool = False) -> None:
        """Queue a batch; ``live``: any of it is in a ring; ``first``: it was out before and came back."""
        queue = self._live if live else self._files
        if first:
            queue.appendleft((key, number))
        else:
            queue.append((key, number))
        if not live:
            self._waiting[key] += 1

    def take(self, out: int, out_of_files: int) -> tuple[Key, int]:
        """Return the next entry, given how many batches are out, and how many of these come from files alone.

        While live ones wait, those from files get one turn in four, and are never more than half of what is out.
        """
        files = bool(self._files)
        if self._live and self._files:
            files = self._in_a_row >= LIVE_IN_A_ROW and 2 * out_of_files <= out
        if not files:
            self._in_a_row += 1
            return self._live.popleft()
        self._in_a_row = 0
        key, number = self._files.popleft()
        self._waiting[key] -= 1
        return key, number

    def forget(self, key: Key) -> None:
        """Drop a stream's entries."""
        for queue in (self._live, self._files):
            for entry in [each for each in queue if each[0] == key]:
                queue.remove(entry)
        self._waiting.pop(key, None)

    def summary(self) -> dict[str, int]:
        """Return how many wait."""
        return {"live": len(self._live), "files": len(self._files)}
