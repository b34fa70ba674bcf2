"""Ask a process of the pool how it does."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import zmq

from .wire.messages import Status, StatusReply, decode, encode

_serials = count(1)


def ask(endpoint: str, timeout: float) -> dict[str, Any] | None:
    """Return what the process at ``endpoint`` says of itself; ``None`` if it says nothing for ``timeout`` seconds."""
    serial = next(_serials)
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    try:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(endpoint)
        socket.send(encode(Status(serial)))
        if not socket.poll(int(1000 * timeout)):
            return None
        reply = decode(socket.recv())
    finally:
        socket.close()
    if not isinstance(reply, StatusReply) or reply.serial != serial:
        return None
    said: dict[str, Any] = json.loads(reply.body)
    return said
