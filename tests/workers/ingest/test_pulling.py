"""A detector's stream comes back, whatever its connection ended by."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
import zmq

from haltere.workers.errors import WireError
from haltere.workers.ingest.pulling import MAX_MESSAGE, Pull
from haltere.workers.wire import simplon

from ...faults.hostile import greet, send_parts

END = simplon.encode(simplon.SeriesEnd(12))


def too_long(peer: socket.socket) -> None:
    greet(peer, "PUSH")
    peer.sendall(b"\x02" + (MAX_MESSAGE + 1).to_bytes(8, "big") + bytes(1000))


def wrong_flags(peer: socket.socket) -> None:
    greet(peer, "PUSH")
    peer.sendall(20 * b"\xff")


def not_zmq(peer: socket.socket) -> None:
    peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(100))


def nothing(peer: socket.socket) -> None:
    """Close at once: from this ZeroMQ recovers by itself."""


@pytest.mark.parametrize("breach", [too_long, wrong_flags, not_zmq, nothing])
def test_a_detector_that_broke_the_rules_is_pulled_from_again(breach: Callable[[socket.socket], None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, zmq.Context() as context:
        listening.settimeout(20)

        def serve() -> None:
            peer, _ = listening.accept()
            with peer, suppress(ConnectionError):
                peer.settimeout(20)
                breach(peer)
                if breach is not nothing:
                    while peer.recv(1000):  # until it is cut off
                        pass
            peer, _ = listening.accept()
            with peer:
                greet(peer, "PUSH")
                send_parts(peer, [bytes(part) for part in END])
                over.wait(20)

        over = threading.Event()
        detector = threading.Thread(target=serve)
        detector.start()
        pull = Pull(context, f"tcp://127.0.0.1:{listening.getsockname()[1]}", "simplon-1", 10)
        deadline = time.monotonic() + 20
        while not pull.socket.poll(50):
            pull.renew(time.monotonic())
            assert time.monotonic() < deadline
        (parts,) = pull.receive(10)
        assert pull.read(parts) == simplon.SeriesEnd(12)
        assert (pull.renewed > 0) == (breach is not nothing)
        over.set()
        detector.join()
        pull.close()


@pytest.mark.parametrize(
    ("endpoint", "protocol", "says"),
    [
        ("tcp://127.0.0.1:1", "nothing-9", "protocol 'nothing-9' is unknown"),
        ("nowhere", "simplon-1", "Invalid argument"),
    ],
)
def test_what_cannot_be_pulled_from_is_refused(endpoint: str, protocol: str, says: str) -> None:
    with zmq.Context() as context, pytest.raises(WireError, match=says):
        Pull(context, endpoint, protocol, 10)
