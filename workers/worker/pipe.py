"""What a worker and its reducer say to each other over a socket pair: records of a message, and bytes beside it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from ..errors import WireError
from ..payload import MAX_PAYLOAD
from ..wire.messages import Nack, Result, Serial, StreamOpen, Work

MAX_RECORD: Final = 1 << 20
_HEADER: Final = struct.Struct("<II")


class Ready(Struct, array_like=True, frozen=True, tag="READY"):
    """Reducer → worker: I am there, imports done."""


BETWEEN: Final = -1
SETTING_UP: Final = -2


class At(Struct, array_like=True, frozen=True, tag="AT"):
    """Reducer → worker: I am at this frame (said only if frames go one by one).

    ``frame`` may be :data:`SETTING_UP`, or :data:`BETWEEN`: at none.
    """

    token: Annotated[int, Meta(ge=-1, lt=2**62)]
    frame: Annotated[int, Meta(ge=-2, lt=2**40)]


class Reduced(Struct, array_like=True, frozen=True, tag="REDUCED"):
    """Reducer → worker: a batch, reduced, with ``cpu_us`` µs of CPU; its arrays come beside it."""

    result: Result
    cpu_us: Serial


class Failed(Struct, array_like=True, frozen=True, tag="FAILED"):
    """Reducer → worker: this batch can't be done."""

    nack: Nack


Record = Ready | At | Reduced | Failed | StreamOpen | Work

_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)
_encoder = msgspec.msgpack.Encoder()


def frame(record: Record, payload: Any = b"") -> list[bytes | memoryview]:
    """Return the buffers to write, one after the other."""
    data = _encoder.encode(record)
    view = memoryview(payload)
    return [_HEADER.pack(len(data), view.nbytes), data, view]


class Unframer:
    """Bytes as they come to records.

    >>> unframer = Unframer()
    >>> data = b"".join(frame(At(7, 4031)))
    >>> list(unframer.feed(data[:5])), list(unframer.feed(data[5:]))
    ([], [(At(token=7, frame=4031), b'')])
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[tuple[Record, bytes]]:
        """Take bytes; yield each record that is whole now, with what came beside it.

        Raises
        ------
        WireError
            These are no records.
        """
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            size, beside = _HEADER.unpack_from(self._buffer)
            if size > MAX_RECORD or beside > MAX_PAYLOAD:
                raise WireError(f"a record of {size} bytes with {beside} beside it: what speaks there is no reducer")
            end = _HEADER.size + size + beside
            if len(self._buffer) < end:
                return
            with memoryview(self._buffer) as view:
                head, tail = bytes(view[_HEADER.size : _HEADER.size + size]), bytes(view[_HEADER.size + size : end])
            del self._buffer[:end]
            try:
                record = _decoder.decode(head)
            except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
                raise WireError(f"a record that no reducer and no worker sends: {error}") from None
            yield record, tail
