"""ZMQ sockets with a bound on what a stranger may do to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import zmq

from ..errors import SettingsError
from .locks import Lock

HANDOVER: Final = 20.0
"""Seconds that a process waits for its predecessor to end."""

HANDSHAKE_MS: Final = 5000
"""Whoever connects and hasn't said who it is by then is cut off: half-open connections don't pile up."""

NOTHING: Final = 1024
"""Bytes in a part of a socket that only sends: whatever comes there is nothing that anybody waits for."""


def make(context: zmq.Context[Any], kind: int, most: int) -> zmq.Socket[bytes]:
    """Return a socket that takes no part of over ``most`` bytes, and on closing waits for nobody.

    The sender of a larger part is cut off when the part is announced, before there is memory for it. ZeroMQ has no
    bound on the number of a message's parts: who may connect at all is for the endpoint to say.

    Parameters
    ----------
    kind
        ``zmq.ROUTER``, ``zmq.DEALER``, …
    most
        Bytes.
    """
    made: zmq.Socket[bytes] = context.socket(kind)
    made.linger = 0
    made.maxmsgsize = most
    made.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    return made


def bind(made: zmq.Socket[bytes], endpoint: str) -> Lock | None:
    """Bind a socket to an endpoint that nobody else has; return what to release when it is closed.

    ZeroMQ lets a process take a Unix socket's name from one that still listens there; and that one, ending later,
    removes the name from under its successor. So the successor waits.

    Raises
    ------
    SettingsError
        It is no endpoint, or another process has it.
    """
    scheme, _, path = endpoint.partition("://")
    alone = Lock(Path(f"{path}.lock")) if scheme == "ipc" else None
    try:
        if alone is not None and not alone.take(HANDOVER):
            raise SettingsError(f"{endpoint} can't be bound: another process listens there")
        made.bind(endpoint)
    except (OSError, zmq.ZMQError) as error:
        if alone is not None:
            alone.release()
        raise SettingsError(f"{endpoint} can't be bound: {error}") from None
    return alone
