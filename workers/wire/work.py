"""Batches to be reduced: between the broker and its workers."""

from typing import Annotated, Final

from msgspec import Meta, Struct, field

from .control import FileSpan
from .fields import MAX_BATCH, BatchSize, Index, Message, Name, Serial, Text, Uid
from .frames import Block

MAX_FILES: Final = 2048
"""Most pieces of files in a WORK."""


class Credit(Message, frozen=True, tag="CREDIT"):
    """I take work up to ``limit`` units in all since this session began (cumulative)."""

    session: Serial
    limit: Index


class RingSpan(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Blocks of one ring, in the order of their frames."""

    ring: Name
    blocks: Annotated[list[Block], Meta(min_length=1, max_length=MAX_BATCH)]


class Damaged(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A frame that came live and doesn't decode: ``Damaged(4031, "bslz4 chunk of 93 bytes is damaged or cut")``."""

    frame: Index
    reason: Annotated[str, Meta(max_length=120)]


class Absent(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A frame that is not to be reduced: ``Absent(4031, 2, "worker died by SIGSEGV twice on it")``.

    ``status`` is :data:`QUARANTINED` or :data:`LOST`.
    """

    frame: Index
    status: Annotated[int, Meta(ge=2, le=3)]
    reason: Text


class Work(Message, frozen=True, tag="WORK"):
    """Reduce frames ``[first, first + n)``: from ``ring``, else from ``files``; those ``absent`` not at all.

    Those ``damaged`` came live and are read from files instead; should these be damaged too, both reasons are told.

    ``token`` is unique per dispatch. With ``isolate`` the frames go one by one, so that the one that kills a worker
    is known by name.
    """

    run: Uid
    stream: Name
    cfg: Name
    first: Index
    n: BatchSize
    token: Serial
    ring: Annotated[list[RingSpan], Meta(max_length=MAX_BATCH)]
    files: Annotated[list[FileSpan], Meta(max_length=MAX_FILES)]
    absent: Annotated[list[Absent], Meta(max_length=MAX_BATCH)]
    isolate: bool = False
    damaged: Annotated[list[Damaged], Meta(max_length=MAX_BATCH)] = field(default_factory=list)


class Beat(Message, frozen=True, tag="BEAT"):
    """I live. ``busy`` is the token of the unit being executed, −1 for none (waiting is not hanging).

    ``got`` units of work came in this session: fewer than were sent, for long, means that some were lost on the way.
    ``held`` are the tokens of those that wait, are executed, or whose result isn't confirmed: one that is missing, for
    long, was refused by a NACK that was lost.
    ``frames`` were reduced since the process began, with ``reduce_us`` µs of CPU spent reading, decoding, reducing.
    """

    session: Serial
    busy: Annotated[int, Meta(ge=-1, lt=2**62)] = -1
    got: Index = 0
    frames: Index = 0
    reduce_us: Serial = 0
    held: Annotated[list[Serial], Meta(max_length=2048)] = field(default_factory=list)


class Nack(Message, frozen=True, tag="NACK"):
    """A unit failed as a whole. ``frame`` names the frame that was being reduced, −1 if unknown.

    The sink says it of a result that it can't take; the worker then says it to the broker.

    ``retryable``: the fault may pass (a file that is late); otherwise it is the frame's own. ``missing`` are the frames
    that can't be read; none named means all that were to be. Those ``damaged`` could be read, but don't decode.
    ``setup``: it failed before it came to a frame, when the recipes were set up.
    """

    run: Uid
    stream: Name
    first: Index
    n: BatchSize
    token: Serial
    frame: Annotated[int, Meta(ge=-1, lt=2**40)]
    reason: Text
    retryable: bool
    missing: Annotated[list[Index], Meta(max_length=MAX_BATCH)] = field(default_factory=list)
    damaged: Annotated[list[Damaged], Meta(max_length=MAX_BATCH)] = field(default_factory=list)
    setup: bool = False


class Bye(Message, frozen=True, tag="BYE"):
    """I leave: take my work back."""

    session: Serial
