"""Answers for a pool: what its owner alone knows of the processes that it watches."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import zmq

from ..errors import PoolError, WireError
from ..processes import sockets
from ..processes.flood import Flood
from ..processes.status_reply import status_reply
from ..wire.messages import MAX_CONTROL, Status, decode, encode

log = logging.getLogger(__name__)

LOOK: Final = 5.0
"""Seconds between two looks at the processes when nobody asks, so that an answer can speak of the last seconds."""

TURN: Final = 100
"""Questions taken before the clock is looked at."""


class Answering:
    """A socket that answers ``Status``, in a thread of its own.

    Parameters
    ----------
    endpoint
        Where it listens.
    says
        Gives the answer; called when somebody asks, and every few seconds.

    Raises
    ------
    PoolError
        The endpoint can't be bound.
    """

    def __init__(self, endpoint: str, says: Callable[[], Mapping[str, Any]]) -> None:
        self._says = says
        self._context = zmq.Context()
        self._socket = sockets.make(self._context, zmq.ROUTER, MAX_CONTROL)
        self._wake_in = self._context.socket(zmq.PAIR)
        self._wake_in.bind("inproc://wake")
        self._wake_out = self._context.socket(zmq.PAIR)
        self._wake_out.connect("inproc://wake")
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise PoolError(f"{endpoint} can't be bound: {error}") from None
        self._thread = threading.Thread(target=self._run, name="answering", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        for socket in (self._socket, self._wake_in):
            poller.register(socket, zmq.POLLIN)
        flood = Flood()
        while True:
            events = dict(poller.poll(int(1000 * LOOK)))
            if self._wake_in in events:
                break
            if not events:
                self._says()
            for _ in range(TURN):
                try:
                    peer, *parts = self._socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                try:
                    if len(parts) != 1:
                        raise WireError(f"a question of {len(parts)} parts, expected 1")
                    question = decode(parts[0])
                except WireError as error:
                    if flood.tell():
                        log.warning("%s (%d so far)", error, flood.count)
                    continue
                if isinstance(question, Status):
                    answer = encode(status_reply(question.serial, self._says()))
                    with suppress(zmq.ZMQError):  # who asked is gone
                        self._socket.send_multipart([peer, answer], zmq.NOBLOCK)
        self._wake_in.close()
        self._socket.close()

    def close(self) -> None:
        """End the thread. May be called again."""
        if not self._wake_out.closed:
            self._wake_out.send(b"")
            self._thread.join()
            self._wake_out.close()
            self._context.term()
