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
Spilled      ingest ⇄ broker ⇄ sink                   these frames are in a file of the pool's; and: it is noted
Ack          sink → dispatcher                        your control messages up to this one are on disk
Connect      session → broker → ingest                pull frames from this endpoint
Claim        broker → ingest                          this series is of that run: so treat its frames
Frames       ingest → broker                          these frames are in the ring, there
Dropped      ingest → broker                          these frames came and were let go, for this reason
Drops        broker → sink                            so many frames were seen to be let go, for these reasons
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

The messages stand in :mod:`.meeting`, :mod:`.control`, :mod:`.frames`, :mod:`.work` and :mod:`.results`, by what they
are about; here are all of them, and what reads and writes them.
"""

from typing import Any, Final

import msgspec

from ..errors import WireError
from .control import Ack, Expect, FileSpan, InputSpec, LiveLane, RecipeSpec, RunClose, RunOpen, StreamOpen, StreamTotal
from .fields import (
    MAX_BATCH,
    VERSION,
    BatchSize,
    DType,
    Index,
    Message,
    Name,
    Path,
    Policy,
    Range,
    Ranges,
    Serial,
    Shape,
    Text,
    Uid,
)
from .frames import Block, Claim, Connect, Dropped, Drops, Frames, Free, Gauge, SeriesGauge, Spilled
from .meeting import MAX_STATUS, Hello, Status, StatusReply, Welcome
from .results import BACKFILLED, LIVE, LOST, QUARANTINED, STATUS_NAMES, ArraySpec, Done, Result
from .work import MAX_FILES, Absent, Beat, Bye, Credit, Damaged, Nack, RingSpan, Work

MAX_CONTROL: Final = 64 * 1024
"""Most bytes in a message; arrays travel beside it, in a part of their own."""

MAX_WORK: Final = 256 * 1024
"""The same of a WORK, which names the files of each data key, and gives a reason for each frame that is left out."""

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
    | Drops
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


__all__ = [
    "BACKFILLED",
    "LIVE",
    "LOST",
    "MAX_BATCH",
    "MAX_CONTROL",
    "MAX_FILES",
    "MAX_STATUS",
    "MAX_WORK",
    "QUARANTINED",
    "STATUS_NAMES",
    "VERSION",
    "Absent",
    "Ack",
    "AnyMessage",
    "ArraySpec",
    "BatchSize",
    "Beat",
    "Block",
    "Bye",
    "Claim",
    "Connect",
    "Credit",
    "DType",
    "Damaged",
    "Done",
    "Dropped",
    "Drops",
    "Expect",
    "FileSpan",
    "Frames",
    "Free",
    "Gauge",
    "Hello",
    "Index",
    "InputSpec",
    "LiveLane",
    "Message",
    "Nack",
    "Name",
    "Path",
    "Policy",
    "Range",
    "Ranges",
    "RecipeSpec",
    "Result",
    "RingSpan",
    "RunClose",
    "RunOpen",
    "Serial",
    "SeriesGauge",
    "Shape",
    "Spilled",
    "Status",
    "StatusReply",
    "StreamOpen",
    "StreamTotal",
    "Text",
    "Uid",
    "Welcome",
    "Work",
    "decode",
    "encode",
]
