"""Results that stand in the ledger go into another reduction of the same run: row by row, through the sink.

The sink takes them as it takes a worker's results, a few at a time and together with those, so that a scan that is
being reduced meanwhile isn't held up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

import zmq

from ..errors import PoolError, WireError
from ..ledger.reader import LedgerReader
from ..ledger.rows import BatchRow
from ..payload import Piece, pack, unpack
from ..processes import sockets
from ..wire.messages import MAX_CONTROL, Done, Nack, Result, StreamOpen, decode, encode

WINDOW: Final = 32
"""Results on their way."""

WINDOW_BYTES: Final = 16 << 20
RESEND: Final = 2.0
"""Seconds until a result that isn't confirmed is sent again: the sink may have died with it."""

PATIENCE: Final = 120.0
"""Seconds without a confirmation after which the sink is given up."""


@dataclass(slots=True)
class _Sent:
    parts: list[Any]
    size: int
    at: float


def take_over(ledger: Path, source: str, target: str, sink: str, skip: Mapping[str, Collection[int]]) -> int:
    """Put the results of ``source`` into ``target``, but for those that it has; return how many frames that were.

    Parameters
    ----------
    ledger
        The ledger's file, which has both.
    source, target
        What the pool calls the two reductions. Of the same stream, cfg and batch only.
    sink
        The sink's endpoint.
    skip
        Per stream the first frames of the batches that are to be done again.

    Raises
    ------
    PoolError
        The sink refuses a result, or doesn't answer.
    """
    with (
        closing(LedgerReader(ledger)) as reader,
        zmq.Context() as context,
        sockets.make(context, zmq.DEALER, MAX_CONTROL) as socket,
    ):
        socket.connect(sink)
        return _hand_over(_results(reader, source, target, skip), socket)


def _results(
    reader: LedgerReader, source: str, target: str, skip: Mapping[str, Collection[int]]
) -> Iterator[tuple[Result, bytearray]]:
    """Give what is to be taken over, in the order of frames."""
    before = {stream.stream: stream for stream in reader.streams(source)}
    done = reader.done(target)
    for stream in reader.streams(target):
        known = before.get(stream.stream)
        if known is None or (known.cfg, known.batch) != (stream.cfg, stream.batch):
            continue
        again = skip.get(stream.stream, ())
        there = done.get((stream.stream, stream.cfg), ())
        consts = [
            piece
            for row in reader.consts(source, stream.stream, stream.cfg)
            for piece in unpack([row.spec], row.payload)
        ]
        first = 0
        while rows := reader.batches(source, stream.stream, stream.cfg, first, 16):
            for row in rows:
                wanted = row.first not in again and (stream.total is None or row.first < stream.total)
                if wanted and not any(row.first in each for each in there):
                    yield _result(row, stream, consts)
                    consts = []
            first = rows[-1].first + 1


def _result(row: BatchRow, stream: StreamOpen, consts: list[Piece]) -> tuple[Result, bytearray]:
    specs, payload = pack([*unpack(row.arrays, row.payload, row.n), *consts])
    key = stream.run, stream.stream, stream.cfg, row.first, row.n
    return Result(*key, row.token, row.worker, row.status, row.reasons, specs), payload


def _hand_over(results: Iterator[tuple[Result, bytearray]], socket: zmq.Socket[bytes]) -> int:
    waiting: dict[tuple[str, int], _Sent] = {}
    frames, heard, ended = 0, monotonic(), False
    while True:
        while not ended and len(waiting) < WINDOW and sum(each.size for each in waiting.values()) < WINDOW_BYTES:
            found = next(results, None)
            if found is None:
                ended = True
                break
            message, payload = found
            parts: list[Any] = [encode(message), payload]
            socket.send_multipart(parts)
            waiting[message.stream, message.first] = _Sent(parts, len(payload), monotonic())
            frames += message.n
        if not waiting:
            return frames
        if socket.poll(int(1000 * RESEND / 4)):
            if _confirmed(socket.recv(), waiting):
                heard = monotonic()
            continue
        now = monotonic()
        if now - heard > PATIENCE:
            raise PoolError(f"the sink hasn't answered for {PATIENCE:.0f} s: {len(waiting)} results aren't taken over")
        for sent in waiting.values():
            if now - sent.at > RESEND:
                sent.at = now
                socket.send_multipart(sent.parts)


def _confirmed(data: bytes, waiting: dict[tuple[str, int], _Sent]) -> bool:
    """Take the sink's word; return whether it confirms anything."""
    try:
        message = decode(data)
    except WireError as error:
        raise PoolError(f"the sink says what can't be read: {error}") from None
    if isinstance(message, Nack):
        raise PoolError(f"frames {message.first} to {message.first + message.n - 1}: {message.reason}")
    if not isinstance(message, Done):
        return False
    before = len(waiting)
    for first, stop in message.ranges:
        for key in [key for key in waiting if key[0] == message.stream and first <= key[1] < stop]:
            del waiting[key]
    return len(waiting) < before
