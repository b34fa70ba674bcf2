"""The wire's bytes as they stand in ``version-1.hex``, a message a line: version 1 of the protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Final, get_args

import pytest

from haltere.workers.wire import messages
from haltere.workers.wire.messages import (
    Absent,
    Ack,
    AnyMessage,
    ArraySpec,
    Beat,
    Block,
    Bye,
    Claim,
    Connect,
    Credit,
    Damaged,
    Done,
    Dropped,
    Drops,
    Expect,
    FileSpan,
    Frames,
    Free,
    Gauge,
    Hello,
    InputSpec,
    LiveLane,
    Nack,
    RecipeSpec,
    Result,
    RingSpan,
    RunClose,
    RunOpen,
    SeriesGauge,
    Spilled,
    Status,
    StatusReply,
    StreamOpen,
    StreamTotal,
    Welcome,
    Work,
)

SPAN: Final = FileSpan("key", "file:///a.h5", "/entry/data", 4, 8, 2)
LANE: Final = LiveLane("tcp://d:9", "simplon-1", 12, "key")
BLOCK: Final = Block(4031, 8388608, 310214, "bslz4", 5120)

MESSAGES: Final[list[AnyMessage]] = [
    Hello(1, "worker", "worker-1", 1732271334000),
    Welcome(1, 1732271330000, 5000, 500),
    RunOpen(1, "raw-1", "processed-1", b"{}"),
    StreamOpen(
        2,
        "raw-1",
        "eiger",
        "cfg",
        16,
        [InputSpec("key", (514, 1030), "<u2")],
        [RecipeSpec("xrd", "azimuthal", b"{}")],
        LANE,
        "spill",
        100,
        True,
    ),
    StreamOpen(
        2, "raw-1", "eiger", "cfg", 16, [InputSpec("key", (514, 1030), "<u2")], [RecipeSpec("xrd", "azimuthal", b"{}")]
    ),
    Expect(3, "raw-1", "eiger", 4, 12, [SPAN]),
    RunClose(4, "raw-1", [StreamTotal("eiger", 12)], "success", b"{}"),
    Spilled(5, "raw-1", "eiger", [SPAN]),
    Ack(1732271334000, 4),
    Connect("tcp://d:9", "simplon-1"),
    Claim("tcp://d:9", 12, "raw-1", "eiger", "key", 16, "block", 41),
    Frames("tcp://d:9", 12, "haltere-7-0", (514, 1030), "<u2", [BLOCK]),
    Dropped("tcp://d:9", 12, [(4, 6), (7, 9)], "ring-full"),
    Drops("raw-1", "eiger", 7, [("decimated", 20), ("ring-full", 4)]),
    Free("haltere-7-0", [0, 192], [1, 2], 3),
    Gauge(7, [SeriesGauge("tcp://d:9", 12, 0.5, 20, 30, 40, False)]),
    Credit(7, 5),
    Work(
        "raw-1",
        "eiger",
        "cfg",
        16,
        8,
        77,
        [RingSpan("haltere-7-0", [BLOCK])],
        [SPAN],
        [Absent(17, 3, "gone")],
        True,
        [Damaged(18, "cut")],
    ),
    Beat(7, 77, 5, 40, 1000, [77, 78]),
    Nack("raw-1", "eiger", 16, 8, 77, -1, "late", True, [17], [Damaged(18, "cut")], True),
    Bye(7),
    Result(
        "raw-1",
        "eiger",
        "cfg",
        16,
        2,
        77,
        "worker-1",
        b"\x00\x02",
        [(17, "cut")],
        [ArraySpec("xrd", "nav", "intensity", (2, 10), "<f4", 8)],
    ),
    Done("raw-1", "eiger", "cfg", [(0, 16), (32, 48)], True, 9, True),
    Status(7),
    StatusReply(7, b"{}"),
]
GOLDEN: Final = [bytes.fromhex(line) for line in Path(__file__).with_name("version-1.hex").read_text().split()]


def test_every_kind_of_message_is_among_them() -> None:
    assert {type(message) for message in MESSAGES} == set(get_args(AnyMessage))


@pytest.mark.parametrize(
    ("message", "data"), list(zip(MESSAGES, GOLDEN, strict=True)), ids=[type(m).__name__ for m in MESSAGES]
)
def test_a_messages_bytes_are_those_of_version_1(message: AnyMessage, data: bytes) -> None:
    assert messages.encode(message) == data
    assert messages.decode(data) == message
