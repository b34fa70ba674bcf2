"""The buffer keeps the RunEngine from waiting, and loses and reorders nothing."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from haltere.callbacks.buffer import FlushableBuffer, join_datums
from haltere.workers.errors import HaltereError


def datum(first: int, stop: int, resource: str = "r") -> dict[str, Any]:
    span = {"start": first, "stop": stop}
    return {
        "uid": f"{resource}/{first}",
        "stream_resource": resource,
        "descriptor": "d",
        "indices": span,
        "seq_nums": {"start": first + 1, "stop": stop + 1},
    }


class Target:
    """A callback that waits at a gate."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, Any]]] = []
        self.gate = threading.Event()

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        """Take a document, once the gate is open."""
        assert self.gate.wait(10)
        if doc.get("uid") == "bad":
            raise ValueError("bad document")
        self.got.append((name, doc))


@pytest.fixture
def target() -> Target:
    return Target()


def test_the_caller_never_waits_for_the_target(target: Target) -> None:
    buffer = FlushableBuffer(target, period=0)
    buffer("start", {"uid": "a"})
    assert not buffer.flush(0.01)  # the target still hangs, and the call above came back
    target.gate.set()
    assert buffer.close(10)
    assert target.got == [("start", {"uid": "a"})]


def test_a_flush_is_a_barrier(target: Target) -> None:
    target.gate.set()
    buffer = FlushableBuffer(target, period=60)
    buffer("start", {"uid": "a"})
    for number in range(100):
        buffer("event", {"uid": str(number)})
    assert buffer.flush(10)
    assert [doc["uid"] for _, doc in target.got] == ["a", *map(str, range(100))]
    buffer.close(10)


def test_stream_datums_that_follow_one_another_become_one(target: Target) -> None:
    buffer = FlushableBuffer(target, period=60)
    buffer("event", {"uid": "first"})
    for first in range(0, 60, 6):
        buffer("stream_datum", datum(first, first + 6))
        buffer("stream_datum", datum(first, first + 6, "other"))
    target.gate.set()
    assert buffer.close(10)
    assert [(doc["stream_resource"], doc["indices"]) for name, doc in target.got if name == "stream_datum"] == [
        ("r", {"start": 0, "stop": 60}),
        ("other", {"start": 0, "stop": 60}),
    ]
    assert target.got[1][1]["seq_nums"] == {"start": 1, "stop": 61}


def test_a_gap_is_not_bridged() -> None:
    assert join_datums(datum(0, 6), datum(7, 9)) is None
    assert join_datums(datum(0, 6), datum(6, 9, "other")) is None


def test_an_error_is_kept_and_told_and_stops_nothing(target: Target) -> None:
    target.gate.set()
    buffer = FlushableBuffer(target, period=0)
    buffer("event", {"uid": "bad"})
    buffer("event", {"uid": "good"})
    assert buffer.close(10)
    assert [doc["uid"] for _, doc in target.got] == ["good"]
    with pytest.raises(HaltereError, match="1 errors, 0 documents dropped; the last: ValueError"):
        buffer.raise_errors()


def test_documents_beyond_the_bound_are_dropped_and_counted(target: Target) -> None:
    buffer = FlushableBuffer(target, period=60, bound=3)
    for number in range(5):
        buffer("event", {"uid": str(number)})
    assert buffer.dropped == 2
    target.gate.set()
    assert buffer.close(10)
    assert len(target.got) == 3


def test_a_document_changed_later_is_written_as_it_was(target: Target) -> None:
    buffer = FlushableBuffer(target, period=60)
    doc = {"uid": "a"}
    buffer("event", doc)
    doc["uid"] = "changed"
    target.gate.set()
    assert buffer.close(10)
    assert target.got == [("event", {"uid": "a"})]
