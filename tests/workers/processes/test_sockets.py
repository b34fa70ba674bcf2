"""Every socket that others can reach is bounded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import zmq

from haltere.workers.processes import sockets

HOUSE = Path(__file__).parents[3]
FOLDERS = ("workers", "callbacks", "devices", "plans", "benchmarks", "profile", "src/haltere")


def test_a_socket_bounds_messages_and_handshakes_and_waits_for_nobody() -> None:
    with zmq.Context() as context, sockets.make(context, zmq.ROUTER, 1000) as made:
        assert made.maxmsgsize == 1000
        assert made.getsockopt(zmq.HANDSHAKE_IVL) == sockets.HANDSHAKE_MS
        assert made.linger == 0
        for high_water in (made.sndhwm, made.rcvhwm):
            assert 0 < high_water <= 100_000


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_socket_that_others_can_reach_is_made_without_bounds(folder: str) -> None:
    """The one exception is a PAIR, which wakes another thread of the same process."""
    for path in (HOUSE / folder).rglob("*.py"):
        if path != HOUSE / "workers" / "processes" / "sockets.py":
            assert not re.findall(r"[Cc]ontext\.socket\((?!zmq\.PAIR\))", path.read_text()), path


def test_a_part_that_is_too_long_ends_the_connection_and_not_the_socket() -> None:
    with zmq.Context() as context, sockets.make(context, zmq.ROUTER, 1000) as made:
        made.rcvtimeo = 10_000
        port = made.bind_to_random_port("tcp://127.0.0.1")
        for said in (b"1", bytes(1001), b"2"):
            with context.socket(zmq.DEALER) as sender:
                sender.linger = 1000
                sender.connect(f"tcp://127.0.0.1:{port}")
                sender.send(said)
        assert {made.recv_multipart()[1], made.recv_multipart()[1]} == {b"1", b"2"}
        assert not made.poll(100)
