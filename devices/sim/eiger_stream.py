"""The DCU's PUSH socket: it sends what a peer takes, drops and counts the rest, and never waits."""

from __future__ import annotations

import threading
from typing import Any, Final

import zmq

from ...workers.errors import SettingsError
from ...workers.processes import sockets
from ...workers.wire import simplon
from .frames import FrameLibrary

HIGH_WATER: Final = 1000
"""Messages that wait for a slow peer before new ones are dropped."""

END_MILLISECONDS: Final = 200
"""Longest that a series' end waits for room in the queue; no frame waits behind it."""


class StreamSource:
    """Stream v1 on a loopback port; ``port`` 0: any free one.

    An image costs four sends of prepared bytes, about 20 µs; the blob itself isn't copied.

    Raises
    ------
    SettingsError
        The port is taken.
    """

    def __init__(self, library: FrameLibrary, port: int = 0, high_water: int = HIGH_WATER) -> None:
        self._library = library
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = sockets.make(self._context, zmq.PUSH, sockets.NOTHING)
        self._socket.sndhwm = high_water
        self._lock = threading.Lock()
        try:
            self._socket.bind(f"tcp://127.0.0.1:{port or '*'}")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise SettingsError(f"stream port {port}: {error.strerror}; take another one or 0") from None
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        # Frame objects share their bytes with every message they are sent in.
        self._blobs = [zmq.Frame(blob) for blob in library.blobs]
        self._descriptions = [
            simplon.describe(library.shape, library.dtype, "bslz4", len(blob)) for blob in library.blobs
        ]
        self._taken = False  # whether a peer has taken any image of this series
        self.dropped = 0
        """Images dropped since the last arm."""
        self.dropped_headers = 0
        """Series headers and ends dropped since the start."""

    def send(self, message: simplon.SeriesHeader | simplon.SeriesEnd) -> None:
        """Send a series' header or end, or count it as dropped. An end waits a moment for a peer that lags."""
        with self._lock:
            if self._socket.closed:
                return
            if isinstance(message, simplon.SeriesHeader):
                self.dropped, self._taken = 0, False
            elif self._taken:
                self._socket.poll(END_MILLISECONDS, zmq.POLLOUT)
            try:
                self._socket.send_multipart(simplon.encode(message), zmq.NOBLOCK)
            except zmq.Again:
                self.dropped_headers += 1

    def image(self, series: int, frame: int, index: int, times: tuple[int, int, int], appendix: bytes) -> bool:
        """Send blob ``index`` of the library as an image, or drop it; ``times``: start, stop, real, ns."""
        with self._lock:
            send = self._socket.send
            first = b'{"htype":"dimage-1.0","series":%d,"frame":%d,"hash":"%s"}' % (
                series,
                frame,
                self._library.hashes[index].encode(),
            )
            last = b'{"htype":"dconfig-1.0","start_time":%d,"stop_time":%d,"real_time":%d}' % times
            more = zmq.NOBLOCK | zmq.SNDMORE
            # A message is taken whole, or refused: at its first part by a full queue, later by a peer that goes away.
            try:
                send(first, more)
                send(self._descriptions[index], more)
                send(self._blobs[index], more, copy=False)
                send(last, more if appendix else zmq.NOBLOCK)
                if appendix:
                    send(appendix, zmq.NOBLOCK)
            except zmq.Again:
                self.dropped += 1
                return False
            self._taken = True
            return True

    def close(self) -> None:
        """Close the socket; what wasn't sent yet is let go."""
        with self._lock:
            self._context.destroy(linger=0)
