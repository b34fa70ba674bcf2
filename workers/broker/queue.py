"""Which batch goes next: the live ones, because somebody waits for them; a backfill's too, because it is long."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from .batch import Key
from .turns import SHARE, Turns

FILES_QUEUED: Final = 32
"""Batches of one stream that wait to be read from files; more are found when there is room."""


class Entry(NamedTuple):
    """A batch that waits. ``filed``: none of it is in a ring."""

    key: Key
    number: int
    filed: bool


class Taken(NamedTuple):
    """A batch whose turn it is. ``charged`` : s of a worker's time that its lane is charged with."""

    key: Key
    number: int
    backfill: bool
    charged: float


class Queue:
    """Two queues, and whose turn it is. An entry may be stale: who takes it looks whether its batch still waits."""

    def __init__(self, share: float = SHARE) -> None:
        self._live: deque[Entry] = deque()
        self._backfill: deque[Entry] = deque()
        self._filed: Counter[Key] = Counter()
        self._turns = Turns(share)

    def __bool__(self) -> bool:
        return bool(self._live or self._backfill)

    def __len__(self) -> int:
        return len(self._live) + len(self._backfill)

    def __iter__(self) -> Iterator[tuple[Key, int]]:
        return ((entry.key, entry.number) for entry in (*self._live, *self._backfill))

    @property
    def live(self) -> int:
        """How many batches wait that aren't a backfill's."""
        return len(self._live)

    def room(self, key: Key) -> int:
        """Return how many more of a stream's batches may wait to be read from files."""
        return FILES_QUEUED - self._filed[key]

    def put(self, key: Key, number: int, *, backfill: bool, filed: bool, first: bool = False) -> None:
        """Queue a batch; ``filed``: none of it is in a ring; ``first``: it was out before and came back."""
        queue, entry = self._backfill if backfill else self._live, Entry(key, number, filed)
        if first:
            queue.appendleft(entry)
        else:
            queue.append(entry)
        self._filed[key] += filed

    def take(self, backfilling: int) -> Taken:
        """Return the next entry, given how many batches of a backfill are out."""
        if self._live and self._backfill:
            backfill = self._turns.next(backfilling=backfilling)
        else:
            backfill = bool(self._backfill)
            self._turns.alone(backfill)
        entry = (self._backfill if backfill else self._live).popleft()
        self._filed[entry.key] -= entry.filed
        return Taken(entry.key, entry.number, backfill, self._turns.cost[backfill])

    def ended(self, backfill: bool, charged: float, seconds: float) -> None:
        """Take note that a batch that was taken has ended; it took a worker these ``seconds``."""
        self._turns.ended(backfill, charged, seconds)

    def let_go(self, backfill: bool, charged: float) -> None:
        """Take note that a batch that was taken didn't go."""
        self._turns.refund(backfill, charged)

    def forget(self, key: Key) -> None:
        """Drop a stream's entries."""
        for queue in (self._live, self._backfill):
            for entry in [each for each in queue if each.key == key]:
                queue.remove(entry)
        self._filed.pop(key, None)

    def summary(self) -> dict[str, int]:
        """Return how many wait."""
        return {"live": len(self._live), "files": len(self._backfill)}
