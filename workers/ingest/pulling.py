"""One detector's stream: the socket that pulls it, and the codec that reads it."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

import msgspec
import zmq
from msgspec import Struct
from zmq.utils.monitor import parse_monitor_message

from ..errors import WireError
from ..processes import sockets

log = logging.getLogger(__name__)

CODECS: Final = {"simplon-1": "simplon", "xspress3-1": "xspress3"}
"""Protocol → module in ``wire`` whose ``Decoder().decode(parts)`` reads it."""

MAX_MESSAGE: Final = 1 << 28
"""Most bytes in a part; an Eiger2 16M's frame has 70 MB before it is compressed."""

PATIENCE: Final = 1.0
"""Seconds after a connection ended until one that doesn't come back by itself is made anew."""

_WATCHED: Final = zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECTED | zmq.EVENT_CONNECT_DELAYED | zmq.EVENT_CONNECT_RETRIED


class Streamed(Protocol):
    """What every codec calls a frame."""

    series: int
    frame: int
    shape: tuple[int, ...]
    dtype: str
    encoding: str
    blob: Any


class Pull:
    """A PULL socket that comes back.

    ZeroMQ connects again to a peer that went away, but never to one that broke its rules: one part too long, one bit
    wrong, and nothing would come from that detector any more.

    Parameters
    ----------
    protocol
        One of :data:`CODECS`.
    high_water
        Messages that may wait here before the detector's own queue fills.

    Raises
    ------
    WireError
        No codec reads that protocol, or the endpoint is none.
    """

    def __init__(self, context: zmq.Context[Any], endpoint: str, protocol: str, high_water: int) -> None:
        if protocol not in CODECS:
            raise WireError(f"protocol {protocol!r} is unknown; there are {', '.join(CODECS)}")
        self.endpoint = endpoint
        self.protocol = protocol
        self.read = importlib.import_module(f"..wire.{CODECS[protocol]}", __package__).Decoder().decode
        """What makes a message of parts; one for all connections, since some streams number their series by it."""
        self.in_hand: Streamed | None = None
        """A frame that was received and finds no room; nothing more is received before it has."""
        self.polled = True
        """Whether anybody waits for the socket."""
        self.renewed = 0
        """How often the connection was made anew."""
        self._context = context
        self._high_water = high_water
        self._ended: float | None = None
        self.socket, self._monitor = self._open()

    def _open(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        made = sockets.make(self._context, zmq.PULL, MAX_MESSAGE)
        made.rcvhwm = self._high_water
        made.setsockopt(zmq.TCP_KEEPALIVE, 1)  # a DCU that was switched off never says so
        monitor = made.get_monitor_socket(_WATCHED)
        try:
            made.connect(self.endpoint)
        except zmq.ZMQError as error:
            _close(made, monitor)
            raise WireError(str(error)) from None
        return made, monitor

    def receive(self, most: int) -> Iterator[Sequence[Any]]:
        """Yield the parts of the messages that are here, at most so many."""
        for _ in range(most):
            try:
                yield [frame.buffer for frame in self.socket.recv_multipart(zmq.NOBLOCK, copy=False)]
            except zmq.Again:
                return

    def renew(self, now: float) -> bool:
        """Make a connection anew that ended and stays so. Return whether :attr:`socket` is another one now."""
        while self._monitor.poll(0):
            event = parse_monitor_message(self._monitor.recv_multipart())["event"]
            self._ended = now if event == zmq.EVENT_DISCONNECTED else None
        if self._ended is None or now - self._ended < PATIENCE or self.socket.poll(0):
            return False
        self._ended = None
        self.renewed += 1
        self.close()
        self.socket, self._monitor = self._open()
        if self.renewed & (self.renewed - 1) == 0:
            log.warning(
                "%s broke the rules of ZeroMQ, or sent a part of over %d bytes: connected anew (%d times so far)",
                *(self.endpoint, MAX_MESSAGE, self.renewed),
            )
        return True

    def close(self) -> None:
        """Close it."""
        _close(self.socket, self._monitor)


def _close(made: zmq.Socket[bytes], monitor: zmq.Socket[bytes]) -> None:
    made.disable_monitor()
    monitor.close(0)
    made.close(0)


class _Identity(Struct):
    series: int = -1
    frame: int = -1


_identity: msgspec.json.Decoder[_Identity] = msgspec.json.Decoder(_Identity)


def identity(parts: Sequence[Any]) -> tuple[int, int]:
    """Return series and frame of a message that can't be read, as far as they can be; −1 where they can't.

    >>> identity([b'{"htype":"dimage-1.0","series":12,"frame":7}', b"garbage"]), identity([b"garbage"])
    ((12, 7), (-1, -1))
    """
    try:
        known = _identity.decode(parts[0]) if parts else _Identity()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        known = _Identity()
    in_bounds = 0 <= known.series < 2**62 and 0 <= known.frame < 2**40
    return (known.series, known.frame) if in_bounds else (-1, -1)
