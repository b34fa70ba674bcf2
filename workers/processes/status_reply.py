"""What a process says of itself, as a message that fits."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec

from ..wire.messages import MAX_STATUS, StatusReply


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
    sizes = {key: _size((key, value)) for key, value in said.items()}
    over = sum(sizes.values()) + 1024 - MAX_STATUS  # what says how much was cut needs room, too
    cut: dict[str, int] = {}
    for key in sorted(sizes, key=lambda each: -sizes[each]):
        if over <= 0:
            break
        value = said.pop(key)
        named = isinstance(value, dict)
        entries = deque(value.items() if named else value if isinstance(value, list) else [value])
        while over > 0 and entries:
            over -= _size(entries.popleft()) - 2
            cut[key] = cut.get(key, 0) + 1
        if entries:
            said[key] = dict(entries) if named else list(entries)
    return {**said, "cut": cut}


def _size(value: Any) -> int:
    return len(msgspec.json.encode(value))
