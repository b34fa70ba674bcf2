"""Frames of a series that no document has claimed yet: they wait in the ring, for a while and not many."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

import msgspec

from ..wire.messages import Dropped, Frames
from .batch import Held

MAX_BLOCKS: Final = 4096
"""Frames that may wait in all. The document that claims them comes when the detector is armed; they fill a pause."""

MAX_DROPPED: Final = 256
"""Messages that say what was dropped; more are let go, and the files tell."""


class Waiting:
    """What came of each unknown series, in the order of arrival.

    Parameters
    ----------
    patience
        Seconds until what nobody claimed is let go.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._frames: OrderedDict[tuple[str, int], list[Frames]] = OrderedDict()
        self._dropped: OrderedDict[tuple[str, int], list[Dropped]] = OrderedDict()
        self._since: dict[tuple[str, int], float] = {}
        self._places: set[tuple[str, int]] = set()  # ring, life
        self._blocks = 0

    def __len__(self) -> int:
        return self._blocks

    def put(self, message: Frames | Dropped, now: float) -> list[Held]:
        """Keep a message; return its blocks if they are too many."""
        lane = message.endpoint, message.series
        if isinstance(message, Dropped):
            if sum(map(len, self._dropped.values())) < MAX_DROPPED:
                self._dropped.setdefault(lane, []).append(message)
                self._since.setdefault(lane, now)
            return []
        # The rest the ingest says again.
        fresh = [block for block in message.blocks if (message.ring, block.life) not in self._places]
        if self._blocks + len(fresh) > MAX_BLOCKS:
            return [Held(message.ring, block) for block in fresh]
        if fresh:
            self._frames.setdefault(lane, []).append(msgspec.structs.replace(message, blocks=fresh))
            self._since.setdefault(lane, now)
            self._places |= {(message.ring, block.life) for block in fresh}
            self._blocks += len(fresh)
        return []

    def claim(self, endpoint: str, series: int) -> list[Frames | Dropped]:
        """Return what waited of a series, and forget it."""
        lane = endpoint, series
        frames = self._frames.pop(lane, [])
        self._since.pop(lane, None)
        for message in frames:
            self._blocks -= len(message.blocks)
            self._places -= {(message.ring, block.life) for block in message.blocks}
        return [*frames, *self._dropped.pop(lane, [])]

    def expired(self, now: float) -> Iterator[Held]:
        """Let go what has waited too long; yield its blocks."""
        for lane in [lane for lane, since in self._since.items() if now - since > self._patience]:
            for message in self.claim(*lane):
                if isinstance(message, Frames):
                    yield from (Held(message.ring, block) for block in message.blocks)
