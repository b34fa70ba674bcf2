"""One batch as the broker sees it, until its result is on disk."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

from .wire.messages import LOST, QUARANTINED, Absent, Block, Damaged, Nack

RETRIES: Final = (1.0, 2.0, 2.0)
"""Seconds to wait after each failed read once all is known that will be; then the frame is lost."""

LATE_FILE: Final = 0.5
"""Seconds between reads of a file that is late while the run is open: no count is kept of them."""

STRIKES: Final = 2
"""So many times a frame may kill a worker before it is quarantined."""

DEATHS: Final = 5
"""So many times a batch may kill a worker alone before any of its frames is named; then all of it is quarantined."""


class Key(NamedTuple):
    """What names a stream; with another ``cfg`` it is another stream."""

    run: str
    stream: str
    cfg: str


class Held(NamedTuple):
    """A frame's block, and the ring it is in."""

    ring: str
    block: Block


class State(Enum):
    """Where a batch stands."""

    OPEN = "open"
    QUEUED = "queued"
    LEASED = "leased"


@dataclass(slots=True)
class Batch:
    """What is known of a batch that isn't done; most batches of a file never need one."""

    state: State = State.OPEN
    held: dict[int, Held] = field(default_factory=dict)
    spoiled: list[Held] = field(default_factory=list)
    """Blocks that are no longer read. A worker thought dead may still read them, so they are freed on DONE only."""
    damaged: dict[int, Damaged] = field(default_factory=dict)
    """Frames that came live and don't decode: their files are to be read, and may be damaged too."""
    absent: dict[int, Absent] = field(default_factory=dict)
    strikes: Counter[int] = field(default_factory=Counter)
    deaths: int = 0
    isolate: bool = False
    tries: int = 0
    not_before: float = 0.0

    @property
    def bytes(self) -> int:
        """Bytes in rings that are to be read."""
        return sum(held.block.size for held in self.held.values())

    @property
    def blocks(self) -> list[Held]:
        """Every block that is to be freed when the batch is done."""
        return [*self.held.values(), *self.spoiled]

    def holds(self, frame: int, held: Held) -> bool:
        """Say whether this very block is held for the frame."""
        if frame in self.held and _same(self.held[frame], held):
            return True
        return any(each.block.frame == frame and _same(each, held) for each in self.spoiled)

    def quarantined(self, frame: int) -> bool:
        """Say whether the frame isn't to be tried again."""
        return frame in self.absent and self.absent[frame].status == QUARANTINED

    def spoil(self, frame: int) -> None:
        """Don't read the frame's block any more."""
        if frame in self.held:
            self.spoiled.append(self.held.pop(frame))

    def give_up(self, frame: int, status: int, reason: str) -> None:
        """Leave a frame out; what was said first of it stands."""
        self.absent.setdefault(frame, Absent(frame, status, reason[:500]))
        self.spoil(frame)

    def lose(self, frame: int, reason: str) -> None:
        """Leave out a frame that can't be had. One that came, though damaged, isn't lost."""
        if frame in self.damaged:
            self.give_up(frame, QUARANTINED, f"{reason[:360]}; what came live: {self.damaged[frame].reason}")
        else:
            self.give_up(frame, LOST, reason)

    def strike(self, nack: Nack, frames: range) -> None:
        """Note that the batch killed a worker. A frame is quarantined only if it was named, alone, and twice."""
        if nack.frame in frames:
            self.strikes[nack.frame] += 1
            if self.strikes[nack.frame] >= STRIKES:
                self.give_up(nack.frame, QUARANTINED, nack.reason)
        elif self.isolate:
            self.deaths += 1
            if self.deaths >= DEATHS:
                for frame in frames:
                    self.give_up(frame, QUARANTINED, nack.reason)
        self.isolate = True

    def unreadable(self, nack: Nack, frames: range, now: float, *, final: bool) -> None:
        """Note that frames couldn't be read; ``final``: nothing more will come of them but what is there."""
        missing = [frame for frame in nack.missing if frame in frames] or list(frames)
        self.damaged.update((each.frame, each) for each in nack.damaged if each.frame in self.held)
        in_ring = [frame for frame in missing if frame in self.held]
        if in_ring:
            for frame in in_ring:  # its ring is gone, or it came damaged; a file may have it
                self.spoil(frame)
        elif not final:
            self.not_before = now + LATE_FILE
        elif self.tries < len(RETRIES):
            self.not_before = now + RETRIES[self.tries]
            self.tries += 1
        else:
            for frame in missing:
                self.lose(frame, nack.reason)


def _same(one: Held, other: Held) -> bool:
    return one.block.life == other.block.life and one.ring == other.ring
