"""Which ingest each ring belongs to, and which of its blocks may be reused."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final

from ..intervals import IntervalSet
from ..wire.messages import Block, Free
from .batch import Held

MAX_RINGS: Final = 64
MAX_FREE: Final = 2048
"""Blocks in one FREE."""


class Rings:
    """Blocks on their way back."""

    def __init__(self) -> None:
        self.orphans = 0
        """Blocks whose ring belongs to nobody any more."""
        self._owners: OrderedDict[str, bytes] = OrderedDict()
        self._freed: dict[str, list[Block]] = {}
        self._past: OrderedDict[str, IntervalSet] = OrderedDict()
        """Per ring the lives of blocks that were freed: who still speaks of them says it twice, or late."""

    def met(self, ring: str, owner: bytes) -> None:
        """Note whose ring it is: an ingest's address changes when it connects anew."""
        self._owners[ring] = owner
        self._owners.move_to_end(ring)
        while len(self._owners) > MAX_RINGS:
            self._owners.popitem(last=False)

    def lost(self, owner: bytes) -> None:
        """Note that nobody is at that address. If its ingest lives it comes again and says what it holds."""
        for ring in [ring for ring, each in self._owners.items() if each == owner]:
            del self._owners[ring]

    def free(self, blocks: Iterable[Held]) -> None:
        """Let blocks be reused."""
        for held in blocks:
            self._freed.setdefault(held.ring, []).append(held.block)
            self._past_of(held.ring).add(held.block.life, held.block.life + 1)

    def living(self, ring: str, blocks: Iterable[Block]) -> list[Block]:
        """Return those of the blocks that weren't freed; the others are freed once more, should that be lost."""
        past = self._past.get(ring)
        if past is None:
            return list(blocks)
        living = []
        for block in blocks:
            if block.life in past:
                self._freed.setdefault(ring, []).append(block)
            else:
                living.append(block)
        return living

    def _past_of(self, ring: str) -> IntervalSet:
        past = self._past.setdefault(ring, IntervalSet())
        self._past.move_to_end(ring)
        while len(self._past) > MAX_RINGS:
            self._past.popitem(last=False)
        return past

    def take(self, queued: int) -> Iterator[tuple[bytes, Free]]:
        """Yield what to tell the owners; ``queued`` batches in rings wait for a worker."""
        for ring, blocks in self._freed.items():
            owner = self._owners.get(ring)
            if owner is None:
                self.orphans += len(blocks)
                continue
            for at in range(0, len(blocks), MAX_FREE):
                some = blocks[at : at + MAX_FREE]
                yield owner, Free(ring, [each.offset for each in some], [each.life for each in some], queued)
        self._freed.clear()
