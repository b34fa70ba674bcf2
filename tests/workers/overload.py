"""A ring and workers that can't follow: the real ingest core, and a model of what takes frames out again."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict, deque
from dataclasses import dataclass, field

from haltere.workers.ingest.core import IngestCore, Source
from haltere.workers.wire.messages import Block, Claim, Frames

EIGER = Source("tcp://eiger", 12, (10, 10), "<u2")
SIZE = 960
"""Bytes of a frame: 1024 with the ring's padding."""


@dataclass
class Overload:
    """A grid flown at ``dwell`` s a point, and ``workers`` that together take ``ratio`` times as long.

    The workers take whole batches in order, and those of which a part was dropped when the file has the rest, a second
    later: so does the broker. The time that a batch takes varies by a third, up and down.
    """

    ratio: float
    rows: int = 60
    columns: int = 100
    batch: int = 20
    ring_batches: int = 40
    dwell: float = 0.005
    workers: int = 2
    claimed: bool = True
    """Whether the ingest knows the stream's batches: without that it takes what finds room, frame by frame."""
    relief: tuple[int, float] | None = None
    """A frame, and the ratio from it on."""
    blocks: dict[int, dict[int, Block]] = field(default_factory=lambda: defaultdict(dict))
    done: dict[int, float] = field(default_factory=dict)
    """Batch → when."""
    late: list[float] = field(default_factory=list)
    """Seconds from a batch's last frame to its result."""

    def __post_init__(self) -> None:
        self.core = IngestCore("haltere-1-0", 1024 * self.batch * self.ring_batches)
        if self.claimed:
            self.core.claim(Claim(*EIGER[:2], "run", "eiger", "image", self.batch, "drop", self.columns))
        self._random = random.Random(1)
        self._queue: deque[int] = deque()
        self._known: set[int] = set()
        self._busy = 0
        self._ends: list[tuple[float, int]] = []

    @property
    def frames(self) -> int:
        """Points of the grid."""
        return self.rows * self.columns

    @property
    def whole(self) -> list[int]:
        """The batches of which every frame came live, in order."""
        return sorted(number for number, blocks in self.blocks.items() if len(blocks) == self.batch)

    @property
    def mixed(self) -> int:
        """How many batches came live in part."""
        return sum(0 < len(blocks) < self.batch for blocks in self.blocks.values())

    def fly(self) -> Overload:
        """Fly the grid; frames that are in the ring at its end stay there."""
        for frame in range(self.frames):
            if self.relief is not None and frame == self.relief[0]:
                self.ratio = self.relief[1]
            now = frame * self.dwell
            while self._ends and self._ends[0][0] <= now:
                self._end(*heapq.heappop(self._ends))
            self.core.place(EIGER, frame, SIZE, "none", now)
            if frame % self.batch == self.batch - 1:
                self._look(frame, now)
        return self

    def _look(self, frame: int, now: float) -> None:
        for message in self.core.take(everything=True):
            if isinstance(message, Frames):
                for block in message.blocks:
                    self.blocks[block.frame // self.batch][block.frame] = block
        for number, blocks in self.blocks.items():
            filed = (number + 1) * self.batch * self.dwell + 1.0 < now
            if number not in self._known and (len(blocks) == self.batch or filed):
                self._known.add(number)
                self._queue.append(number)
        self._begin(now)

    def _begin(self, now: float) -> None:
        while self._queue and self._busy < self.workers:
            self._busy += 1
            took = self.ratio * self.workers * self.batch * self.dwell * self._random.uniform(2 / 3, 4 / 3)
            heapq.heappush(self._ends, (now + took, self._queue.popleft()))

    def _end(self, now: float, number: int) -> None:
        self._busy -= 1
        self.done[number] = now
        self.late.append(now - (number + 1) * self.batch * self.dwell)
        blocks = self.blocks[number].values()
        self._begin(now)
        self.core.load.waiting(len(self._queue), now)
        self.core.free("haltere-1-0", [each.offset for each in blocks], [each.life for each in blocks], now)

    def hole(self) -> int:
        """Return in how many rows on end some place of the row was never reduced, whole batches apart."""
        longest = 0
        for place in range(self.columns // self.batch):
            covered = [number * self.batch // self.columns for number in self.done if self._place(number) == place]
            edges = [-1, *sorted(covered), self.rows]
            longest = max(longest, *(b - a for a, b in itertools.pairwise(edges)))
        return longest

    def _place(self, number: int) -> int:
        return number * self.batch % self.columns // self.batch
