"""What came of batches: from the workers to the sink, and from there to whoever waits for them."""

from typing import Annotated, Final

from msgspec import Meta, Struct

from .fields import MAX_BATCH, BatchSize, DType, Index, Message, Name, Ranges, Serial, Shape, Text, Uid

LIVE: Final = 0
BACKFILLED: Final = 1
QUARANTINED: Final = 2
LOST: Final = 3
STATUS_NAMES: Final = ("live", "backfilled", "quarantined", "lost")


class ArraySpec(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One array of the payload: ``ArraySpec("xrd", "nav", "intensity", (20, 1000), "<f4", 0)``.

    ``kind`` is ``nav`` (first axis: the batch's frames), ``acc`` (adds over batches, integers only) or ``const`` (the
    same for the whole run: axes, names). ``offset`` counts bytes from the payload's start, a multiple of 8.
    """

    recipe: Name
    kind: Name
    name: Name
    shape: Shape
    dtype: DType
    offset: Index


class Result(Message, frozen=True, tag="RESULT"):
    """A batch, reduced. ``status`` has one byte per frame; ``reasons`` explain those not live or backfilled."""

    run: Uid
    stream: Name
    cfg: Name
    first: Index
    n: BatchSize
    token: Serial
    worker: Name
    status: Annotated[bytes, Meta(min_length=1, max_length=MAX_BATCH)]
    reasons: Annotated[list[tuple[Index, Text]], Meta(max_length=MAX_BATCH)]
    arrays: Annotated[list[ArraySpec], Meta(max_length=512)]


class Done(Message, frozen=True, tag="DONE"):
    """These frames are on disk. ``full``: this is everything that is, not only what's new.

    ``controls``, with ``full``: so many control messages the run has had, RUN_CLOSE the last of them if it is
    ``closed``. Who has seen fewer has to ask for them.
    """

    run: Uid
    stream: Name
    cfg: Name
    ranges: Ranges
    full: bool = False
    controls: Index = 0
    closed: bool = False
