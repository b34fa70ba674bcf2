"""What the ingest and its spiller say to each other over a socket pair that keeps messages apart."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from ..errors import WireError
from ..wire.messages import FileSpan

MAX_RECORD: Final = 1 << 17


class Kind(NamedTuple):
    """What the frames of one file have in common."""

    run: str
    stream: str
    key: str
    shape: tuple[int, ...]
    dtype: str
    encoding: str

    @property
    def stem(self) -> str:
        """What the names of a stream's files begin with."""
        return f"{self.run}.{self.stream}."


FULL: Final = "spill-full"
FAILED: Final = "spill-failed"


class Put(Struct, array_like=True, frozen=True, tag="PUT"):
    """Ingest → spiller: write this frame, which lies there in the shared memory between us."""

    kind: Kind
    frame: int
    offset: int
    size: int


class Search(Struct, array_like=True, frozen=True, tag="SEARCH"):
    """Ingest → spiller: find what ingests before have spilled of this stream."""

    run: str
    stream: str


class Written(Struct, array_like=True, frozen=True, tag="WRITTEN"):
    """Spiller → ingest: these frames are in files, readable; their memory is free again."""

    run: str
    stream: str
    files: list[FileSpan]
    offsets: list[int]


class Refused(Struct, array_like=True, frozen=True, tag="REFUSED"):
    """Spiller → ingest: these frames can't be written; their memory is free again."""

    offsets: list[int]
    reason: str


class Searched(Struct, array_like=True, frozen=True, tag="SEARCHED"):
    """Spiller → ingest: of this stream there is nothing more to be found."""

    run: str
    stream: str


Order = Put | Search
Answer = Written | Refused | Searched

_orders: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
_encoder = msgspec.msgpack.Encoder()


def encode(record: Order | Answer) -> bytes:
    """Return the record's bytes.

    >>> decode_order(encode(Search("9f", "eiger"))), decode_answer(encode(Searched("9f", "eiger")))
    (Search(run='9f', stream='eiger'), Searched(run='9f', stream='eiger'))
    """
    return _encoder.encode(record)


def decode_order(data: bytes) -> Order:
    """Return what the ingest says.

    Raises
    ------
    WireError
        No ingest says that.
    """
    try:
        return _orders.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise WireError(f"a record that no ingest sends: {error}") from None


def decode_answer(data: bytes) -> Answer:
    """Return what the spiller says.

    Raises
    ------
    WireError
        No spiller says that.
    """
    try:
        return _answers.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise WireError(f"a record that no spiller sends: {error}") from None
