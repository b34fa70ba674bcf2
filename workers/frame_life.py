"""A frame's life: the broker moves it until a worker has its batch, and there it ends."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from .states import StateTable
from .wire.messages import STATUS_NAMES


class Frame(StrEnum):
    """Where a frame stands."""

    UNSEEN = "unseen"
    HELD = "held"
    OWED = "owed"
    MISSING = "missing"
    CONDEMNED = "condemned"
    SURPLUS = "surplus"
    LIVE = "live"
    BACKFILLED = "backfilled"
    QUARANTINED = "quarantined"
    LOST = "lost"


class FrameEvent(StrEnum):
    """What happens to a frame."""

    CAME = "came"
    PASSED = "passed"
    UNREADABLE = "unreadable"
    DAMAGED = "damaged"
    LACKING = "lacking"
    WORTHLESS = "worthless"
    KILLED = "killed"
    UNTRIED = "untried"
    UNSAYABLE = "unsayable"
    CUT = "cut"
    REDUCED = "reduced"
    READ = "read, no lane"
    FAILED = "failed"
    REPORTED = "reported"


_F, _E = Frame, FrameEvent

FRAME: Final = StateTable(
    "frame",
    {
        _F.UNSEEN: "No byte of it is here.",
        _F.HELD: "Its bytes are in a ring, and are reduced from there.",
        _F.OWED: "It doesn't come live, or what came is of no use: its file is to give it.",
        _F.MISSING: "Neither the stream nor a file has it, and the evidence is kept.",
        _F.CONDEMNED: "It isn't tried again, and the reason is kept.",
        _F.SURPLUS: "It came, and no document promised it: it is let go and counted.",
        _F.LIVE: "It is reduced from the stream, or from its file where there is no stream.",
        _F.BACKFILLED: "It is reduced from its file.",
        _F.QUARANTINED: "It is there and can't be reduced; the reason is kept.",
        _F.LOST: "It isn't there; the evidence is kept.",
    },
    [
        ([_F.UNSEEN], _E.CAME, _F.HELD, "The ingest says that it is in its ring."),
        ([_F.OWED, _F.MISSING], _E.CAME, _F.HELD, "It comes after all, late."),
        ([_F.UNSEEN], _E.PASSED, _F.OWED, "Its batch goes to a worker without it: the file is to give it."),
        ([_F.HELD], _E.UNREADABLE, _F.OWED, "Its ring is gone."),
        ([_F.HELD], _E.DAMAGED, _F.OWED, "What came doesn't decode."),
        (
            [_F.UNSEEN, _F.HELD, _F.OWED],
            _E.LACKING,
            _F.MISSING,
            "The run has ended, and no file was announced that has it, or none gives it though tried again and again.",
        ),
        ([_F.OWED], _E.WORTHLESS, _F.CONDEMNED, "The same, of a frame that came damaged: it was there."),
        ([_F.HELD, _F.OWED], _E.KILLED, _F.CONDEMNED, "Alone it has killed a worker, twice."),
        (
            [_F.HELD, _F.OWED],
            _E.UNTRIED,
            _F.CONDEMNED,
            "The reducer dies each time before it comes to a frame: the recipe can't be set up, most likely.",
        ),
        (
            [_F.HELD, _F.OWED],
            _E.UNSAYABLE,
            _F.CONDEMNED,
            "The frames of its batch lie in so many files and datasets that no message can name them.",
        ),
        ([_F.HELD], _E.CUT, _F.SURPLUS, "The run has ended before it."),
        ([_F.HELD], _E.REDUCED, _F.LIVE, "Every recipe has reduced it."),
        ([_F.OWED], _E.REDUCED, _F.BACKFILLED, "Every recipe has reduced it."),
        ([_F.OWED], _E.READ, _F.LIVE, "The same, of a detector that has no live lane: its file is the intended way."),
        ([_F.HELD, _F.OWED], _E.FAILED, _F.QUARANTINED, "A recipe can't reduce it, or its file has it damaged."),
        ([_F.CONDEMNED], _E.REPORTED, _F.QUARANTINED, "Its batch is reduced without it."),
        ([_F.MISSING], _E.REPORTED, _F.LOST, "Its batch is reduced without it."),
    ],
)

STATUS: Final = {Frame(name): number for number, name in enumerate(STATUS_NAMES)}
"""The number of each end in the ledger."""
