"""Messages of any two processes: who they are, and how things stand."""

from typing import Annotated, Final

from msgspec import Meta

from .fields import VERSION, Message, Name, Serial

MAX_STATUS: Final = 60 * 1024
"""Most bytes in what a process says of itself."""


class Hello(Message, frozen=True, tag="HELLO"):
    """``Hello(1, "worker", "worker-1", 1732271334000)``: session grows each time the sender starts anew."""

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    role: Name
    name: Name
    session: Serial


class Welcome(Message, frozen=True, tag="WELCOME"):
    """``Welcome(1, 1732271330000, 5000, 500)``: epoch grows each time the broker or sink starts anew.

    A ``lease_ms`` of 0 means: I don't know your session, say Hello with a new one.
    """

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    epoch: Serial
    lease_ms: Annotated[int, Meta(ge=0, lt=2**31)]
    beat_ms: Annotated[int, Meta(ge=0, lt=2**31)]


class Status(Message, frozen=True, tag="STATUS"):
    """How do things stand? The answer carries the same ``serial``."""

    serial: Serial


class StatusReply(Message, frozen=True, tag="STATUS_REPLY"):
    """Thus they stand: ``StatusReply(7, b'{"role":"broker", …}')``."""

    serial: Serial
    body: Annotated[bytes, Meta(max_length=MAX_STATUS)]
