"""What a process says of itself, as a message that fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from .wire.messages import MAX_STATUS, StatusReply


def status_reply(serial: int, said: Mapping[str, Any]) -> StatusReply:
    """Return the answer to a question, cut to what a message may hold.

    What is cut are the first entries (the oldest) of what is largest; ``"cut"`` says how many of what.

    >>> status_reply(7, {"role": "sink"})
    StatusReply(serial=7, body=b'{"role":"sink"}')
    """
    body = msgspec.json.encode(said)
    if len(body) > MAX_STATUS:
        body = msgspec.json.encode(_cut(dict(said)))
    return StatusReply(serial, body)


def _cut(said: dict[str, Any]) -> dict[str, Any]:
    sizes = {key: len(msgspec.json.encode(value)) + len(msgspec.json.encode(key)) + 2 for key, value in said.items()}
    room = MAX_STATUS - 1024  # for saying what was cut
    cut: dict[str, int] = {}
    while sum(sizes.values()) > room:
        key = max(sizes, key=lambda each: sizes[each])
        value = said[key]
        if isinstance(value, dict) and value:
            value = dict(list(value.items())[1:])
        elif isinstance(value, list) and value:
            value = value[1:]
        else:
            value = None
        said[key] = value
        sizes[key] = len(msgspec.json.encode(value)) + len(msgspec.json.encode(key)) + 2 if value else 0
        cut[key] = cut.get(key, 0) + 1
    return {**{key: value for key, value in said.items() if sizes[key]}, "cut": cut}
