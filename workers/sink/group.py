"""What waits for the ledger: collected into groups, each committed at once, and tried again after a pause."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Final

from ..ledger.rows import BatchRow, ConstRow, Group

log = logging.getLogger(__name__)

GROUP_SECONDS: Final = 0.02
GROUP_ROWS: Final = 2000
GROUP_BYTES: Final = 32 << 20
MAX_BUFFER: Final = 256 << 20
"""Bytes that may wait while the disk is full. Beyond, results are refused: their workers keep and resend them."""

MAX_CONTROLS: Final = 20_000
"""The same for control messages: their dispatcher resends them."""

FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 1.0


@dataclass(slots=True)
class Waiting:
    """A group, who is to be answered for each of its batches, and the size of their payloads."""

    group: Group = field(default_factory=Group)
    askers: list[bytes] = field(default_factory=list)
    size: int = 0


class Grouping:
    """One group that is collected, and at most one on its way to the disk."""

    def __init__(self) -> None:
        self.collected = Waiting()
        self.flight: Waiting | None = None
        self._since = 0.0
        self._pause = 0.0
        self._retry_at = float("-inf")

    @property
    def group(self) -> Group:
        """What is collected now."""
        return self.collected.group

    @property
    def size(self) -> int:
        """Bytes that wait, on their way to the disk or before."""
        return self.collected.size + (self.flight.size if self.flight is not None else 0)

    @property
    def rows(self) -> int:
        """Batches that wait."""
        return len(self.group.batches) + (len(self.flight.group.batches) if self.flight is not None else 0)

    @property
    def stalled(self) -> bool:
        """Whether the last commit failed."""
        return self._pause > 0

    def begin(self, now: float) -> None:
        """Note that something is collected from now on."""
        if not self._since:
            self._since = now

    def add(self, row: BatchRow, consts: list[ConstRow], asker: bytes, now: float) -> None:
        """Collect a batch."""
        self.begin(now)
        self.group.batches.append(row)
        self.group.consts += consts
        self.collected.size += len(row.payload)
        self.collected.askers.append(asker)

    def withdraw_drops(self, run: str) -> None:
        """Leave out what is collected of a run's drops."""
        drops = self.group.drops
        self.group.drops = {key: told for key, told in drops.items() if key[0] != run}

    def wait(self, now: float) -> float | None:
        """Return how many seconds may pass before a commit is due, None if none will be."""
        if self.flight is not None:
            return self._retry_at - now
        return self._since + GROUP_SECONDS - now if self.group else None

    def take(self, now: float, *, all_: bool = False) -> Group | None:
        """Return what is to be committed now, if anything is; with ``all_`` whatever there is."""
        if self.flight is not None:
            return self.flight.group if all_ or now >= self._retry_at else None
        full = len(self.group.batches) >= GROUP_ROWS or self.collected.size >= GROUP_BYTES
        if not self.group or not (all_ or full or now - self._since >= GROUP_SECONDS):
            return None
        self.flight, self.collected, self._since = self.collected, Waiting(), 0.0
        return self.flight.group

    def committed(self) -> Waiting:
        """Return what was on its way, now that it is on disk."""
        assert self.flight is not None
        done, self.flight, self._pause = self.flight, None, 0.0
        return done

    def failed(self, error: Exception, now: float) -> None:
        """Let what is on its way be tried again after a growing pause."""
        self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
        self._retry_at = now + self._pause
        log.error("ledger: %s; trying again in %.1f s, %d bytes wait", error, self._pause, self.size)
