"""Ask a process of the pool how it does."""

from __future__ import annotations

import json
import logging
from itertools import count
from typing import Any

import zmq

from ..errors import WireError
from ..wire.messages import MAX_CONTROL, Message, Status, StatusReply, decode, encode
from . import sockets

log = logging.getLogger(__name__)

_serials = count(1)


def ask(endpoint: str, timeout: float, *first: Message) -> dict[str, Any] | None:
    """Return what the process at ``endpoint`` says of itself; ``None`` if it says nothing for ``timeout`` seconds.

    ``first`` are messages that it is told before, so its answer says that it has taken them.
    """
    serial = next(_serials)
    socket = sockets.make(zmq.Context.instance(), zmq.DEALER, MAX_CONTROL)
    try:
        socket.connect(endpoint)
        for message in (*first, Status(serial)):
            socket.send(encode(message))
        if not socket.poll(int(1000 * timeout)):
            return None
        reply = decode(socket.recv())
        said = json.loads(reply.body) if isinstance(reply, StatusReply) and reply.serial == serial else None
    except (WireError, ValueError) as error:
        log.warning("%s answers what can't be read: %s", endpoint, error)
        return None
    finally:
        socket.close()
    return said if isinstance(said, dict) else None
