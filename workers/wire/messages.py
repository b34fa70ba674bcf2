"""The messages between the pool's processes: tagged msgpack arrays, every field bounded.

===========  =======================================  ==========================================
message      direction                                says
===========  =======================================  ==========================================
Hello        any → broker, sink                       who I am, and since when
Welcome      broker, sink → any                       your session is known; my epoch
RunOpen      dispatcher → sink → broker               a run has begun, with this start document
StreamOpen   dispatcher → sink → broker → worker      a detector's frames are wanted, by these recipes
Expect       dispatcher → sink → broker               these frames exist, and in which file they are
RunClose     dispatcher → sink → broker               the run has ended; this many frames were promised
Spilled      ingest → broker → sink → broker → ingest  these frames are in a file of the pool's; and: it is noted
Ack          sink → dispatcher                        your control messages up to this one are on disk
Connect      session → broker → ingest                pull frames from this endpoint
Claim        broker → ingest                          this series is of that run: so treat its frames
Frames       ingest → broker                          these frames are in the ring, there
Dropped      ingest → broker                          these frames came and were let go, for this reason
Free         broker → ingest                          these blocks of the ring may be reused
Gauge        ingest → broker                          I live; so I treat the series that you claimed
Credit       worker → broker                          I take work up to this many units in all
Work         broker → worker                          reduce this batch
Beat         worker → broker                          I live; this is what I execute
Nack         sink → worker → broker                   this batch failed, for this reason
Result       worker → sink                            a batch, reduced; arrays follow as one part
Done         sink → worker, broker, recorder          these frames are on disk: forget them
Bye          worker → broker                          I leave: take my work back
Status       any → broker, sink                       how do things stand?
StatusReply  broker, sink → any                       thus, as JSON
===========  =======================================  ==========================================

Loss, duplication and reordering of any message are harmless: credit is cumulative, tokens are unique, the rest is
idempotent. A unit of work is a batch: frames ``[first, first + n)`` of one stream, where ``first`` is a multiple of
the stream's ``batch`` for the whole run, so a replay is recognised by its key alone.

A *stream* here is one detector's sequence of frames within a run, named after the detector (``"eiger"``); all
recipes that read it are applied to a frame in one go.
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from ..errors import WireError

VERSION: Final = 1
MAX_CONTROL: Final = 64 * 1024
"""Most bytes in a message; arrays travel beside it, in a part of their own."""

MAX_STATUS: Final = 60 * 1024
"""Most bytes in what a process says of itself."""

MAX_WORK: Final = 256 * 1024
"""The same of a WORK, which names the files of each data key, and gives a reason for each frame that is left out."""

MAX_FILES: Final = 2048
"""Most pieces of files in a WORK."""

MAX_BATCH: Final = 64
"""Most frames in a batch."""

# \Z and not $, which lets a line break follow.
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,64}\Z")]
Uid = Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{1,64}\Z")]
Index = Annotated[int, Meta(ge=0, lt=2**40)]
Serial = Annotated[int, Meta(ge=0, lt=2**62)]
BatchSize = Annotated[int, Meta(ge=1, le=MAX_BATCH)]
Text = Annotated[str, Meta(max_length=500)]
Path = Annotated[str, Meta(max_length=4096)]
Shape = Annotated[tuple[Annotated[int, Meta(ge=0, lt=2**31)], ...], Meta(max_length=8)]
DType = Annotated[str, Meta(pattern=r"^[<>|=]?[biuf][0-9]{1,2}\Z")]
Range = tuple[Index, Index]
"""Half-open: ``(first, stop)``."""
Ranges = Annotated[list[Range], Meta(max_length=2048)]

Policy = Literal["drop", "spill", "block"]
"""What becomes of frames that find no room: dropped and counted; written to a file of the pool's; waited for."""


class Message(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A line of the conversation."""


# --- meeting ---------------------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, tag="HELLO"):
    """``Hello(1, "worker", "worker-1", 1732271334000)``: session grows each time the sender starts anew."""

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    role: Name
    name: Name
    session: Serial


class Welcome(Message, frozen=True, tag="WELCOME"):
    """``Welcome(1, 1732271330000, 5000, 500)``: epoch grows each time the broker or sink starts anew.

    A ``lease_ms`` of 0 means: I don't know your session, say Hello with a new one.
    """

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    epoch: Serial
    lease_ms: Annotated[int, Meta(ge=0, lt=2**31)]
    beat_ms: Annotated[int, Meta(ge=0, lt=2**31)]


# --- what exists, from the documents ---------------------------------------------------------------------------------


class RunOpen(Message, frozen=True, tag="RUN_OPEN"):
    """A run has begun. ``start`` is its start document as JSON (large values left out beyond 48 kB)."""

    serial: Serial
    run: Uid
    processed: Uid
    start: Annotated[bytes, Meta(max_length=48 * 1024)]


class RecipeSpec(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A reducer by its entry-point name, with its parameters as JSON; ``name`` is the processed run's stream."""

    name: Name
    reducer: Name
    params: Annotated[bytes, Meta(max_length=16 * 1024)]


class InputSpec(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One data key of the detector: ``InputSpec("eiger_image", (514, 1030), "<u2")``, shape and type of one frame."""

    key: Name
    shape: Shape
    dtype: DType


class LiveLane(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Where frames come live: ``LiveLane("tcp://127.0.0.1:9999", "simplon-1", 12, "eiger_image")``.

    ``protocol`` names the codec, ``series`` the detector's own number for this acquisition, ``key`` the data key
    that a streamed frame is.
    """

    endpoint: Annotated[str, Meta(max_length=256)]
    protocol: Name
    series: Serial
    key: Name


class StreamOpen(Message, frozen=True, tag="STREAM_OPEN"):
    """A detector's frames are wanted, by these recipes. Without a live lane its file is the only lane.

    ``cfg`` is the hash of the recipes (:func:`haltere.workers.recipes.cfg_hash`); ``batch`` fixes the boundaries.
    ``policy`` says what becomes of frames that find no room; no bit of the results depends on it.
    ``total`` says that the run has ended with so many frames: none comes live any more, all are in the files.
    ``sums`` : a recipe adds over frames, so no batch goes before all its frames are promised. One that went with frames
    beyond a run's early end would have these in its sums.
    """

    serial: Serial
    run: Uid
    stream: Name
    cfg: Name
    batch: BatchSize
    inputs: Annotated[list[InputSpec], Meta(min_length=1, max_length=256)]
    recipes: Annotated[list[RecipeSpec], Meta(min_length=1, max_length=32)]
    live: LiveLane | None = None
    policy: Policy = "drop"
    total: Index | None = None
    sums: bool = False


class FileSpan(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Frames ``[first, first + n)`` of one data key lie in ``dataset`` of the file at ``uri`` from ``offset`` on."""

    key: Name
    uri: Path
    dataset: Path
    first: Index
    n: Annotated[int, Meta(ge=1, lt=2**40)]
    offset: Index


class Expect(Message, frozen=True, tag="EXPECT"):
    """Frames ``[first, stop)`` were promised by ``stream_datum``; ``files`` says where each data key has them."""

    serial: Serial
    run: Uid
    stream: Name
    first: Index
    stop: Index
    files: Annotated[list[FileSpan], Meta(max_length=256)]


class Spilled(Message, frozen=True, tag="SPILLED"):
    """Frames of ``stream`` that found no room in memory lie in these files, which the pool wrote itself.

    The ingest says it until it hears it back from the broker: then it is on the sink's disk.
    """

    serial: Serial
    run: Uid
    stream: Name
    files: Annotated[list[FileSpan], Meta(min_length=1, max_length=256)]


class StreamTotal(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """In all, ``n`` frames of ``stream`` were promised."""

    stream: Name
    n: Index


class RunClose(Message, frozen=True, tag="RUN_CLOSE"):
    """The run has ended. ``stop`` is its stop document as JSON."""

    serial: Serial
    run: Uid
    totals: Annotated[list[StreamTotal], Meta(max_length=64)]
    exit_status: Name
    stop: Annotated[bytes, Meta(max_length=32 * 1024)]


class Ack(Message, frozen=True, tag="ACK"):
    """Control messages of dispatcher ``session`` up to ``serial`` are on disk."""

    session: Serial
    serial: Serial


# --- frames ----------------------------------------------------------------------------------------------------------


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
    searched: bool = True
    """All that an ingest before this one spilled has been found."""


class Gauge(Message, frozen=True, tag="GAUGE"):
    """I live, and treat these series so. A claim that isn't among them was lost."""

    session: Serial
    series: Annotated[list[SeriesGauge], Meta(max_length=64)]


# --- work ------------------------------------------------------------------------------------------------------------


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
    damaged: Annotated[list[Damaged], Meta(max_length=MAX_BATCH)] = []


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
    held: Annotated[list[Serial], Meta(max_length=2048)] = []


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
    missing: Annotated[list[Index], Meta(max_length=MAX_BATCH)] = []
    damaged: Annotated[list[Damaged], Meta(max_length=MAX_BATCH)] = []
    setup: bool = False


class Bye(Message, frozen=True, tag="BYE"):
    """I leave: take my work back."""

    session: Serial


# --- results ---------------------------------------------------------------------------------------------------------

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


# --- status ----------------------------------------------------------------------------------------------------------


class Status(Message, frozen=True, tag="STATUS"):
    """How do things stand? The answer carries the same ``serial``."""

    serial: Serial


class StatusReply(Message, frozen=True, tag="STATUS_REPLY"):
    """Thus they stand: ``StatusReply(7, b'{"role":"broker", …}')``."""

    serial: Serial
    body: Annotated[bytes, Meta(max_length=MAX_STATUS)]


# --- codec -----------------------------------------------------------------------------------------------------------

AnyMessage = (
    Hello
    | Welcome
    | RunOpen
    | StreamOpen
    | Expect
    | RunClose
    | Spilled
    | Ack
    | Connect
    | Claim
    | Frames
    | Dropped
    | Free
    | Gauge
    | Credit
    | Work
    | Beat
    | Nack
    | Bye
    | Result
    | Done
    | Status
    | StatusReply
)

_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)
_encoder = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    """Return the message's bytes.

    >>> decode(encode(Bye(7)))
    Bye(session=7)
    """
    return _encoder.encode(message)


def decode(data: Any, most: int = MAX_CONTROL) -> AnyMessage:
    """Return the message that ``data`` (bytes-like, at most ``most`` bytes) holds.

    Raises
    ------
    WireError
        It is too long, not msgpack, of no known kind, or a field is out of bounds.
    """
    if len(data) > most:
        raise WireError(f"a message of {len(data)} bytes is over the limit of {most}: dropped")
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a message of this protocol, version {VERSION}: {error}") from None
