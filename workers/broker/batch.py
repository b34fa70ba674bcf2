"""One batch as the broker sees it, until its result is on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from ..frame_life import FRAME, Frame, FrameEvent
from ..states import StateTable
from ..wire.messages import LOST, QUARANTINED, Absent, Block, Damaged, Nack

RETRIES: Final = (1.0, 2.0, 2.0)
"""Seconds to wait after each failed read once all is known that will be; then the frame is lost."""

LATE_FILE: Final = 0.5
"""Seconds between reads of a file that is late while the run is open: no count is kept of them."""

STRIKES: Final = 2
"""So many times a frame may kill a worker before it is quarantined."""

DEATHS: Final = 5
"""So many times a batch may kill a worker alone before any of its frames is named; then all of it is quarantined.

So many times in a row a stream's recipes may kill workers that set them up; then it isn't tried for a while.
"""

MAX_REASON: Final = 500
"""Letters of why a frame is left out."""

SETUP_AGAIN: Final = 60.0
"""Seconds during which the batches of such a stream are quarantined untried. Later, one death is enough for more."""


_CAME, _UNSEEN = FrameEvent.CAME, Frame.UNSEEN  # for each frame: an enum's attributes take their time


class Key(NamedTuple):
    """What names a stream; with another ``cfg`` it is another stream."""

    run: str
    stream: str
    cfg: str


class Held(NamedTuple):
    """A frame's block, and the ring it is in."""

    ring: str
    block: Block


class State(StrEnum):
    """Where a batch stands."""

    OPEN = "open"
    QUEUED = "queued"
    LEASED = "leased"
    GONE = "gone"


class Event(StrEnum):
    """What happens to a batch."""

    READY = "ready"
    SENT = "sent"
    BACK = "back"
    DONE = "done"
    CUT = "cut"
    LET_GO = "let go"


BATCH: Final = StateTable(
    "batch",
    {
        State.OPEN: "It waits: for frames, for files, for the time to be tried again.",
        State.QUEUED: "It can go, and waits for a worker with credit.",
        State.LEASED: "A worker has it. Its blocks in the ring stay held.",
        State.GONE: "It is forgotten, and its blocks in the ring are free.",
    },
    [
        ([State.OPEN], Event.READY, State.QUEUED, "Every frame is in a ring, in a file, or known to be absent."),
        ([State.QUEUED], Event.SENT, State.LEASED, "A worker has credit."),
        ([State.LEASED], Event.BACK, State.OPEN, "Its worker refuses it, or leaves, dies, hangs, or has lost it."),
        ([State.OPEN, State.QUEUED, State.LEASED], Event.DONE, State.GONE, "The sink has its result on disk."),
        ([State.OPEN, State.QUEUED], Event.CUT, State.GONE, "The run has ended before its first frame."),
        ([State.OPEN, State.QUEUED, State.LEASED], Event.LET_GO, State.GONE, "Its run is forgotten."),
    ],
)


@dataclass(slots=True)
class Batch:
    """What is known of a batch that isn't done; most batches of a file never need one."""

    state: State = State.OPEN
    held: dict[int, Held] = field(default_factory=dict)
    spoiled: list[Held] = field(default_factory=list)
    """Blocks that are no longer read. A worker thought dead may still read them, so they are freed on DONE only."""
    owed: set[int] = field(default_factory=set)
    """Frames that files are to give."""
    damaged: dict[int, Damaged] = field(default_factory=dict)
    """Those of them that came live and don't decode: their files may be damaged too."""
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

    def move(self, event: Event) -> None:
        """Go where the table says."""
        self.state = BATCH.move(self.state, event)

    def frame(self, number: int) -> Frame:
        """Return where a frame stands."""
        if number in self.absent:
            return Frame.MISSING if self.absent[number].status == LOST else Frame.CONDEMNED
        if number in self.held:
            return Frame.HELD
        return Frame.OWED if number in self.owed else _UNSEEN

    def take(self, frame: int, held: Held) -> bool:
        """Take a frame that came live; return whether it is of use."""
        before = self.frame(frame)
        if self.state is State.LEASED or not FRAME.allows(before, _CAME):
            return False
        FRAME.move(before, _CAME)
        if before is not _UNSEEN:
            self.absent.pop(frame, None)
            self.damaged.pop(frame, None)
            self.owed.discard(frame)
        self.held[frame] = held
        return True

    def owe(self, frames: Iterable[int]) -> None:
        """Note that files are to give these frames, which aren't held."""
        new = [frame for frame in frames if frame not in self.owed]
        if new:  # as one: they all move alike
            FRAME.move(self.frame(new[0]), FrameEvent.PASSED)
            self.owed.update(new)

    def spoil(self, frame: int, event: FrameEvent) -> None:
        """Don't read a held frame's block any more."""
        after = FRAME.move(self.frame(frame), event)
        self.spoiled.append(self.held.pop(frame))
        if after is Frame.OWED:
            self.owed.add(frame)

    def give_up(self, frame: int, event: FrameEvent, reason: str) -> None:
        """Leave a frame out; what was said first of it stands."""
        if frame in self.absent:
            return
        after = FRAME.move(self.frame(frame), event)
        self.absent[frame] = Absent(frame, LOST if after is Frame.MISSING else QUARANTINED, reason[:MAX_REASON])
        if frame in self.held:
            self.spoiled.append(self.held.pop(frame))

    def lose(self, frame: int, reason: str) -> None:
        """Leave out a frame that can't be had. One that came, though damaged, isn't lost."""
        if frame in self.damaged:
            reason = f"{reason[:360]}; what came live: {self.damaged[frame].reason}"
            self.give_up(frame, FrameEvent.WORTHLESS, reason)
        else:
            self.give_up(frame, FrameEvent.LACKING, reason)

    def condemn(self, frames: Iterable[int], event: FrameEvent, reason: str) -> None:
        """Leave out all of them: no worker comes as far as to try one."""
        for frame in frames:
            self.give_up(frame, event, reason)

    def strike(self, nack: Nack, frames: range) -> None:
        """Note that the batch killed a worker. A frame is quarantined only if it was named, alone, and twice."""
        if nack.frame in frames:
            self.strikes[nack.frame] += 1
            if self.strikes[nack.frame] >= STRIKES:
                self.give_up(nack.frame, FrameEvent.KILLED, nack.reason)
        elif self.isolate:
            self.deaths += 1
            if self.deaths >= DEATHS:
                self.condemn(frames, FrameEvent.UNTRIED, nack.reason)
        self.isolate = True

    def unreadable(self, nack: Nack, frames: range, now: float, *, final: bool) -> None:
        """Note that frames couldn't be read; ``final``: nothing more will come of them but what is there."""
        missing = [frame for frame in nack.missing if frame in frames] or list(frames)
        self.damaged.update((each.frame, each) for each in nack.damaged if each.frame in self.held)
        in_ring = [frame for frame in missing if frame in self.held]
        if in_ring:
            for frame in in_ring:  # a file may have it
                self.spoil(frame, FrameEvent.DAMAGED if frame in self.damaged else FrameEvent.UNREADABLE)
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
