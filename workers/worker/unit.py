"""One unit of work in a worker's hands: a batch, from the broker's word to the sink's."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

from ..states import StateTable
from ..wire.messages import Result, Work

RESEND: Final = 1.0
"""Seconds until a result that the sink hasn't confirmed is sent again; doubled each time, up to MAX_RESEND."""

MAX_RESEND: Final = 8.0


class Stage(StrEnum):
    """Where a unit stands."""

    WAITING = "waiting"
    RUNNING = "running"
    KEPT = "kept"
    DONE = "done"
    REFUSED = "refused"
    DROPPED = "dropped"


class UnitEvent(StrEnum):
    """What happens to a unit."""

    TAKEN = "taken"
    REDUCED = "reduced"
    CONFIRMED = "confirmed"
    FAILED = "failed"
    DIED = "died"
    SPARED = "spared"
    DECLINED = "declined"
    UNWANTED = "unwanted"
    REPLACED = "replaced"
    ENDED = "ended"


UNIT: Final = StateTable(
    "unit of work",
    {
        Stage.WAITING: "It waits for the reducer.",
        Stage.RUNNING: "The reducer has it.",
        Stage.KEPT: "It is reduced; the sink is sent the result, again and again.",
        Stage.DONE: "Its result is on disk.",
        Stage.REFUSED: "The broker is told that it can't be done here, and why.",
        Stage.DROPPED: "It is let go: the broker gives it to another, or it is done.",
    },
    [
        ([Stage.WAITING], UnitEvent.TAKEN, Stage.RUNNING, "The reducer has room for it."),
        ([Stage.WAITING], UnitEvent.ENDED, Stage.DROPPED, "The session with the broker ends, or the worker does."),
        ([Stage.RUNNING], UnitEvent.REDUCED, Stage.KEPT, "Each of its frames is reduced, or known not to be."),
        ([Stage.RUNNING], UnitEvent.FAILED, Stage.REFUSED, "Frames of it can't be read, or came damaged."),
        ([Stage.RUNNING], UnitEvent.DIED, Stage.REFUSED, "The reducer died or hung, and was at this unit."),
        ([Stage.RUNNING], UnitEvent.SPARED, Stage.WAITING, "The reducer died or hung before it came to it."),
        ([Stage.KEPT], UnitEvent.CONFIRMED, Stage.DONE, "The sink says that it is on disk."),
        ([Stage.KEPT], UnitEvent.DECLINED, Stage.REFUSED, "The sink says that it isn't what was asked for."),
        ([Stage.KEPT], UnitEvent.REPLACED, Stage.DROPPED, "The same batch came again, and was reduced again."),
        ([Stage.KEPT], UnitEvent.UNWANTED, Stage.DROPPED, "No sink has confirmed it for ten minutes."),
    ],
)


class Kept(NamedTuple):
    """A result that isn't known to be on disk, and when it was made."""

    message: Result
    payload: Any
    made: float


@dataclass(slots=True)
class Unit:
    """A unit of work, the session with the broker that it came in, and its result as soon as there is one."""

    work: Work
    session: int
    stage: Stage = Stage.WAITING
    result: Kept | None = None
    sent: float = 0.0
    pause: float = RESEND

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What the ledger knows it by."""
        return self.work.run, self.work.stream, self.work.cfg, self.work.first

    @property
    def kept(self) -> Kept:
        """The result, which is there while it is kept."""
        assert self.result is not None
        return self.result

    def move(self, event: UnitEvent) -> None:
        """Go where the table says."""
        self.stage = UNIT.move(self.stage, event)

    def keep(self, message: Result, payload: Any, now: float) -> None:
        """Take the result, which is sent now."""
        self.move(UnitEvent.REDUCED)
        self.result = Kept(message, payload, now)
        self.sent = now

    def due(self, now: float) -> bool:
        """Say whether the result is to be sent again now, and note that it is."""
        if now - self.sent < self.pause:
            return False
        self.sent = now
        self.pause = min(2 * self.pause, MAX_RESEND)
        return True
