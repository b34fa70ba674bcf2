"""Frames that come live: between the ingest, which has them in its ring, and the broker."""

from typing import Annotated

from msgspec import Meta, Struct

from .control import FileSpan
from .fields import BatchSize, DType, Index, Message, Name, Policy, Ranges, Serial, Shape, Uid


class Connect(Message, frozen=True, tag="CONNECT"):
    """Pull frames from this endpoint, in this protocol."""

    endpoint: Annotated[str, Meta(max_length=256)]
    protocol: Name


class Claim(Message, frozen=True, tag="CLAIM"):
    """``series`` is the ``stream`` of a run: treat its frames by ``policy``. Until this is said they are dropped.

    ``batch`` : frames in a batch; ``row`` : frames in a row of the scan, 0 if it has none: so that what is left out
    can be whole batches, spread evenly. ``key`` is the data key that a frame is.
    """

    endpoint: Annotated[str, Meta(max_length=256)]
    series: Serial
    run: Uid
    stream: Name
    key: Name
    batch: BatchSize
    policy: Policy
    row: Index = 0


class Block(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One frame's bytes in the ring: ``Block(4031, 8388608, 310214, "bslz4", 5120)``.

    ``encoding`` says how to decode them. ``life`` counts the blocks of the ring: what was there before, at the same
    offset or of a frame of the same number, had another.
    """

    frame: Index
    offset: Index
    size: Annotated[int, Meta(ge=0, lt=2**31)]
    encoding: Name
    life: Serial = 0


class Frames(Message, frozen=True, tag="FRAMES"):
    """Frames of ``series`` are in the shared memory named ``ring``."""

    endpoint: Annotated[str, Meta(max_length=256)]
    series: Serial
    ring: Name
    shape: Shape
    dtype: DType
    blocks: Annotated[list[Block], Meta(min_length=1, max_length=256)]


class Dropped(Message, frozen=True, tag="DROPPED"):
    """Frames of ``series`` came and were let go: ``reason`` is e.g. ``"ring-full"`` or ``"decimated"``."""

    endpoint: Annotated[str, Meta(max_length=256)]
    series: Serial
    ranges: Ranges
    reason: Name


class Drops(Message, frozen=True, tag="DROPS"):
    """So many frames of ``stream`` a broker has seen to be let go since it began, by cause.

    ``Drops("9f-3c", "eiger", 1732271330000, [("decimated", 1020), ("ring-full", 40)])``. ``epoch`` is the broker's:
    what it says later takes the place of what it said before, and adds to what a broker before it had seen.
    """

    run: Uid
    stream: Name
    epoch: Serial
    causes: Annotated[list[tuple[Annotated[str, Meta(max_length=100)], Index]], Meta(max_length=32)]


class Free(Message, frozen=True, tag="FREE"):
    """These blocks of the ring, by their offsets and lives, may be reused: ``Free("haltere-7-0", [0, 192], [1, 2])``.

    Of a block that has another life by now the message is void. ``queued`` batches in rings wait for a worker.
    """

    ring: Name
    offsets: Annotated[list[Index], Meta(max_length=4096)]
    lives: Annotated[list[Serial], Meta(max_length=4096)]
    queued: Index = 0


class SeriesGauge(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Of a claimed series ``kept`` is the part of its batches that goes live now; so long its detector had to wait."""

    endpoint: Annotated[str, Meta(max_length=256)]
    series: Serial
    kept: Annotated[float, Meta(ge=0, le=1)]
    blocked_ms: Serial = 0
    spilled: Serial = 0
    spilled_bytes: Serial = 0
    spills_known: bool = True
    """All that was spilled is known to the ledger, also what an ingest before this one spilled."""


class Gauge(Message, frozen=True, tag="GAUGE"):
    """I live, and treat these series so. A claim that isn't among them was lost."""

    session: Serial
    series: Annotated[list[SeriesGauge], Meta(max_length=64)]


class Spilled(Message, frozen=True, tag="SPILLED"):
    """Frames of ``stream`` that found no room in memory lie in these files, which the pool wrote itself.

    The ingest says it until it hears it back from the broker: then it is on the sink's disk.
    """

    serial: Serial
    run: Uid
    stream: Name
    files: Annotated[list[FileSpan], Meta(min_length=1, max_length=256)]
